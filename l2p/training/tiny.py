"""A recipe's tiny twin: every stage of it on a random pipeline of the same family, in about a minute and without a download.

It proves that the way from the prompts to the report is open: packages, prompts, objectives, the teacher's family, the
disk. What it draws is noise, and its figures say nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from l2p.corpus.prompts import LANDSCAPES
from l2p.files import atomic_path, write_text
from l2p.recipe import HeadConfig, Recipe, StageConfig
from l2p.teachers import BUNDLED, tiny

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
    path = recipe.teacher.path
    if not _is_bundled(path):
        tiny.name_for(path)
        path = f"{folder}/tiny-teacher"
    steps = min(STEPS, recipe.teacher.num_inference_steps)
    teacher = replace(
        recipe.teacher, path=path, revision=None, num_inference_steps=steps, height=SIDE, width=SIDE
    )
    corpus = replace(recipe.corpus, prompts=prompts, num_pairs=16, num_inference_steps=steps, path=None)
    student = replace(recipe.student, core=recipe.student.core and "tiny", head=_head(recipe.student.head))
    return replace(
        recipe,
        name=name,
        output_dir=folder,
        device="auto",
        teacher=teacher,
        corpus=replace(corpus, batch_size=min(4, corpus.batch_size), shard_size=8),
        lift=replace(recipe.lift, num_images=32, min_r2=-1.0),  # random latents explain no pixels
        student=student,
        transfer=_stage(recipe.transfer),
        one_step=_stage(recipe.one_step),
        match=_stage(recipe.match),
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
        logging=replace(recipe.logging, wandb=False),
    )


def prepare(recipe: Recipe, tiny_recipe: Recipe) -> None:
    """Write the pipeline, and the prompts where there are none, that the tiny twin of a recipe names."""
    if not _is_bundled(recipe.teacher.path):
        name = tiny.name_for(recipe.teacher.path)
        with atomic_path(tiny_recipe.teacher.path) as partial:
            tiny.save(name, partial, recipe.seed)
        prompts = tiny.prompts_for(name)
    else:
        prompts = tiny.WORDS
    if tiny_recipe.corpus.prompts not in (LANDSCAPES, recipe.corpus.prompts):
        write_text(tiny_recipe.corpus.prompts, "\n".join(prompts) + "\n")


def _is_bundled(path: str) -> bool:
    return (BUNDLED / path / "model_index.json").is_file()


def _head(head: HeadConfig) -> HeadConfig:
    return replace(head, width=head.head_dim, num_blocks=min(1, head.num_blocks), pretrained=None)


def _stage(stage: StageConfig) -> StageConfig:
    return replace(
        stage,
        steps=STEPS,
        batch_size=min(4, stage.batch_size),
        warmup_steps=min(1, stage.warmup_steps),
        checkpoint_every=1,
        preview_every=STEPS,
    )
