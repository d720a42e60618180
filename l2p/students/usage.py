"""What a student was trained for, and a warning for whoever asks it for something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from l2p.errors import warn

if TYPE_CHECKING:
    from l2p.students.student import StudentSpec

FEW_STEPS = 8  # a student of so many steps or fewer was distilled to exactly that number
LIKE = 1.25  # ratio of sides up to which a picture counts as one of the trained size


def usage_notes(
    spec: StudentSpec,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
) -> list[str]:
    """A line for each value that differs from what the student was trained for in a way that costs quality."""
    notes, trained = [], spec.num_steps
    if num_steps is not None and num_steps != trained and (trained <= FEW_STEPS or num_steps < trained / 2):
        notes.append(
            f"{num_steps} steps asked of a student that was trained for {trained}: its pictures are best at {trained}"
        )
    if guidance_scale is not None and guidance_scale > 1 and spec.guidance_scale <= 1:
        notes.append(
            f"guidance scale {guidance_scale:g} asked of a student that was trained without guidance: it has its "
            "teacher's in its weights, and more costs a second pass and spoils the picture"
        )
    for name, value, own in (("height", height, spec.height), ("width", width, spec.width)):
        if value is not None and own and not 1 / LIKE <= value / own <= LIKE:
            notes.append(
                f"{name} {value} asked of a student that was trained at {spec.width} x {spec.height} pixels: shapes repeat or "
                "fall apart away from that size (`l2p grow` makes a student of a larger one)"
            )
            break
    return notes


def world_of(config: Mapping[str, Any]) -> str | None:
    """Where the prompts came from that the student of a ``config.json`` was trained on; None if it does not say."""
    value: Any = config
    for key in ("recipe", "corpus", "prompts"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None


def prompt_notes(world: str | None, prompts: Sequence[str]) -> list[str]:
    """A line for the prompts that name nothing of a procedural world, the only one a student of it knows."""
    from l2p.corpus.prompts import LANDSCAPES
    from l2p.landscapes import parse

    if world != LANDSCAPES:
        return []
    foreign = [prompt for prompt in prompts if prompt.strip() and not parse(prompt)]
    if not foreign:
        return []
    more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    return [
        f"the prompt {foreign[0][:60]!r}{more} names nothing that this student was trained on, captions of {world} such as "
        "'a red house by a lake at dusk': expect some landscape"
    ]


def warn_all(notes: Sequence[str]) -> None:
    for note in notes:
        warn(note)
