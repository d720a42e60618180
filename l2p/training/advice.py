"""What to lower, stage by stage, where memory ran out."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

from l2p.errors import UserError, out_of_memory

if TYPE_CHECKING:
    from l2p.recipe import Recipe

T = TypeVar("T")
TRAINING = ("transfer", "one_step", "match")


def advised(work: Callable[..., T]) -> Callable[..., T]:
    """``work(run, stage, ...)``, which turns memory that ran out into a UserError with :func:`advice`."""

    @wraps(work)
    def told(run, stage: str, *rest) -> T:
        try:
            return work(run, stage, *rest)
        except Exception as error:
            if out_of_memory(error):
                raise UserError(advice(stage, run.recipe)) from error
            raise

    return told


def advice(stage: str, recipe: Recipe) -> str:
    """One line: the stage that ran out of memory, and the knobs that would help, the gentlest first."""
    knobs = _of_training(stage, recipe) if stage in TRAINING else _of_drawing(stage, recipe)
    knobs.append(
        f"a smaller teacher.height and teacher.width ({recipe.teacher.height} x {recipe.teacher.width})"
    )
    return (
        f"out of memory in the stage {stage}: take {', '.join(knobs[:-1])}, or {knobs[-1]}; `l2p plan RECIPE` says what "
        "fits; what is done is kept, so run the same command again"
    )


def _of_training(stage: str, recipe: Recipe) -> list[str]:
    batch, student = getattr(recipe, stage).batch_size, recipe.student
    knobs = [f"a smaller {stage}.batch_size ({batch})"] if batch > 1 else []
    if not student.gradient_checkpointing:
        knobs.append("student.gradient_checkpointing=true")
    if student.core is None and student.lora is None:
        if student.train_blocks == "all":
            knobs.append("student.train_blocks={first: 5, last: 5}")
        knobs.append("student.lora={rank: 16} with student.train_blocks=all")
    if student.core not in (None, "tiny"):
        knobs.append(f"a smaller student.core ({student.core})")
    return knobs


def _of_drawing(stage: str, recipe: Recipe) -> list[str]:
    section = "evaluation" if stage == "evaluation" else "corpus"
    batch = getattr(recipe, section).batch_size
    return [f"a smaller {section}.batch_size ({batch})"] if batch > 1 else []
