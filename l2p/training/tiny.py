"""A recipe's tiny twin: every stage of it on a random pipeline of the same family, in about a minute and without a download.

It proves that the way from the prompts to the report is open: packages, prompts, objectives, the teacher's family, the
disk. What it draws is noise, and its figures say nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from l2p.corpus.prompts import LANDSCAPES
from l2p.files import atomic_path, write_text
from l2p.recipe import HeadConfig, Recipe, StageConfig
from l2p.teachers import BUNDLED, tiny

S = TypeVar("S", bound=StageConfig)
SIDE = 64  # pixels
STEPS = 2


def shrunk(recipe: Recipe) -> Recipe:
    """The recipe with small sizes and in a folder of its own; what is trained and how stays as it was.

    Raises:
        UserError: a teacher whose family cannot be told.
    """
    name, folder = f"{recipe.name}-tiny", f"{recipe.output_dir}-tiny"
    prompts = recipe.corpus.prompts
    if prompts != LANDSCAPES and not Path(prompts).is_file():
        prompts = f"{folder}/tiny-prompts.txt"
    path = stand_in(recipe.teacher.path, folder)
    steps = min(STEPS, recipe.teacher.num_inference_steps)
    teacher = replace(
        recipe.teacher, path=path, revision=None, num_inference_steps=steps, height=SIDE, width=SIDE
    )
    corpus = replace(recipe.corpus, prompts=prompts, num_pairs=16, num_inference_steps=steps, path=None)
    # a scorer would leave nothing of noise
    corpus = replace(corpus, num_prompts=None, llm=None, quality=None)
    student = replace(
        recipe.student, core=recipe.student.core and "tiny", head=small_head(recipe.student.head)
    )
    return replace(
        recipe,
        name=name,
        output_dir=folder,
        device="auto",
        teacher=teacher,
        corpus=replace(corpus, batch_size=min(4, corpus.batch_size), shard_size=8),
        lift=replace(recipe.lift, num_images=32, min_r2=-1.0),  # random latents explain no pixels
        student=student,
        transfer=small_stage(recipe.transfer),
        one_step=small_stage(recipe.one_step),
        match=small_stage(recipe.match),
        evaluation=replace(
            recipe.evaluation,
            num_images=4,
            batch_size=2,
            preview_images=2,
            prompts=None,
            cache=None,
            latency_runs=1,
            clip=None,
            peak_memory=False,
        ),
        logging=replace(recipe.logging, tensorboard=False, wandb=False),
    )


def prepare(recipe: Recipe, tiny_recipe: Recipe) -> None:
    """Write the pipeline, and the prompts where there are none, that the tiny twin of a recipe names."""
    path = recipe.teacher.path
    write_stand_in(path, tiny_recipe.teacher.path, recipe.seed)
    if tiny_recipe.corpus.prompts not in (LANDSCAPES, recipe.corpus.prompts):
        prompts = tiny.WORDS if _is_bundled(path) else tiny.prompts_for(tiny.name_for(path))
        write_text(tiny_recipe.corpus.prompts, "\n".join(prompts) + "\n")


def stand_in(teacher: str, folder: str) -> str:
    """Path of the tiny pipeline that stands for a teacher, in the run's folder; the bundled one stands for itself.

    Raises:
        UserError: a teacher whose family cannot be told.
    """
    if _is_bundled(teacher):
        return teacher
    tiny.name_for(teacher)
    return f"{folder}/tiny-teacher"


def write_stand_in(teacher: str, path: str, seed: int) -> None:
    """Write the pipeline that :func:`stand_in` names."""
    if path != teacher:
        with atomic_path(path) as partial:
            tiny.save(tiny.name_for(teacher), partial, seed)


def _is_bundled(path: str) -> bool:
    return (BUNDLED / path / "model_index.json").is_file()


def small_head(head: HeadConfig) -> HeadConfig:
    return replace(head, width=head.head_dim, num_blocks=min(1, head.num_blocks), pretrained=None)


def small_stage(stage: S) -> S:
    return replace(
        stage,
        steps=STEPS,
        batch_size=min(4, stage.batch_size),
        warmup_steps=min(1, stage.warmup_steps),
        checkpoint_every=1,
        preview_every=STEPS,
    )
