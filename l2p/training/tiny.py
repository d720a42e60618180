"""A recipe's tiny twin: every stage of it on a random pipeline of the same family, in about a minute and without a download.

It proves that the way from the prompts to the report is open: packages, prompts, objectives, the teacher's family, the
disk. What it draws is noise, and its figures say nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from l2p.corpus.prompts import LANDSCAPES
from l2p.files import atomic_path, write_text
from l2p.recipe import HeadConfig, Recipe, StageConfig, StudentConfig
from l2p.teachers import BUNDLED, Teacher, load_teacher, tiny

if TYPE_CHECKING:
    from l2p.training.grow import GrowRecipe

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
    # a scorer would leave nothing of noise
    corpus = replace(corpus, num_prompts=None, llm=None, quality=None)
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


def shrunk_growth(recipe: GrowRecipe) -> GrowRecipe:
    """As :func:`shrunk`, for `l2p grow`: the student is a tiny one too, and grows by the same factor."""
    folder, side = f"{recipe.output_dir}-tiny", SIDE * recipe.factor
    teacher = recipe.teacher
    if not _is_bundled(teacher):
        tiny.name_for(teacher)
        teacher = f"{folder}/tiny-teacher"
    return replace(
        recipe,
        name=f"{recipe.name}-tiny",
        output_dir=folder,
        device="auto",
        student=f"{folder}/tiny-student",
        teacher=teacher,
        head=_head(recipe.head),
        pictures=replace(recipe.pictures, sizes=[[side, side]], inversion_steps=STEPS),
        optim=replace(recipe.optim, steps=STEPS, batch_size=1, warmup_steps=1, checkpoint_every=STEPS),
        preview_images=1,
    )


def prepare_growth(recipe: GrowRecipe, tiny_recipe: GrowRecipe) -> None:
    """Write the pipeline and the untrained student that the tiny twin of a recipe of `l2p grow` names."""
    from l2p.students.io import save_student

    if tiny_recipe.teacher != recipe.teacher:
        with atomic_path(tiny_recipe.teacher) as partial:
            tiny.save(tiny.name_for(recipe.teacher), partial, recipe.seed)
    teacher = load_teacher(tiny_recipe.teacher)
    with torch.random.fork_rng(devices=[]), atomic_path(tiny_recipe.student) as partial:
        torch.manual_seed(recipe.seed)
        save_student(_untrained(teacher), partial, text_encoder=teacher.text_encoder)


def _untrained(teacher: Teacher) -> torch.nn.Module:
    """A student of a teacher through a lift that was fitted to nothing."""
    from l2p.lift import Lift
    from l2p.students.build import from_teacher

    p, d = teacher.geometry.token_pixels, teacher.geometry.token_dim
    basis = torch.linalg.qr(torch.randn(3 * p**2, d, dtype=torch.float64))[0]
    lift = Lift(basis, 1.0, torch.zeros(3 * p**2, dtype=torch.float64), r2=0.0, r2_lstsq=0.0, r2_pca=0.0)
    head = HeadConfig(fine_patch=p // 2, width=32, num_blocks=1)
    return from_teacher(teacher, lift, StudentConfig(patch_size=p, head=head), (SIDE, SIDE))


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
