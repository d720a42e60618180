"""Tiny twins of what is no distillation: growing, and the training of a pixel diffusion decoder. See :mod:`l2p.training.tiny`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from l2p.files import atomic_path
from l2p.recipe import HeadConfig, StudentConfig
from l2p.teachers import Teacher, load_teacher
from l2p.training.tiny import SIDE, STEPS, small_head, small_stage, stand_in, write_stand_in

if TYPE_CHECKING:
    from l2p.training.grow import GrowRecipe
    from l2p.training.pid import PidRecipe, PidStage

CORE = {
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [8, 12, 12],
    "axes_lens": [1024, 64, 64],
}


def shrunk_growth(recipe: GrowRecipe) -> GrowRecipe:
    """As :func:`l2p.training.tiny.shrunk`: the student is a tiny one too, and grows by the same factor.

    Photographs that are there are used; renders take the place of those that are not.
    """
    folder, side = f"{recipe.output_dir}-tiny", SIDE * recipe.factor
    photos = [source for source in recipe.pictures.photos if Path(source).exists()]
    return replace(
        recipe,
        name=f"{recipe.name}-tiny",
        output_dir=folder,
        device="auto",
        student=f"{folder}/tiny-student",
        teacher=stand_in(recipe.teacher, folder),
        head=small_head(recipe.head),
        band_height=recipe.band_height and side // 2,
        pictures=replace(recipe.pictures, sizes=[[side, side]], inversion_steps=STEPS, photos=photos),
        optim=replace(recipe.optim, steps=STEPS, batch_size=1, warmup_steps=1, checkpoint_every=STEPS),
        preview_images=1,
    )


def prepare_growth(recipe: GrowRecipe, tiny_recipe: GrowRecipe) -> None:
    """Write the pipeline and the untrained student that the tiny twin of a recipe of `l2p grow` names."""
    from l2p.students.io import save_student

    write_stand_in(recipe.teacher, tiny_recipe.teacher, recipe.seed)
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


def shrunk_decoder(recipe: PidRecipe) -> PidRecipe:
    """As :func:`l2p.training.tiny.shrunk`, for `l2p train-pid`: small latents, the same scale and stages."""
    folder, crop = f"{recipe.output_dir}-tiny", SIDE * recipe.student.scale
    sizes, pictures = recipe.student, recipe.pictures
    there = pictures.folder if pictures.folder and Path(pictures.folder).exists() else None
    return replace(
        recipe,
        name=f"{recipe.name}-tiny",
        output_dir=folder,
        device="auto",
        teacher=stand_in(recipe.teacher, folder),
        student=replace(
            sizes,
            weights=None,  # they are of other sizes
            core=sizes.core and CORE,
            adapter_width=8,
            features=8,
            head=small_head(sizes.head),
            draft_head=small_head(sizes.draft_head),
        ),
        pictures=replace(pictures, count=4, height=crop, width=crop, crop=crop, path=None, folder=there),
        flow=_decoder_stage(recipe.flow),
        few_step=_decoder_stage(recipe.few_step),
        one_step=_decoder_stage(recipe.one_step),
        polish=_decoder_stage(recipe.polish),
        preview_images=1,
        logging=replace(recipe.logging, wandb=False),
    )


def _decoder_stage(stage: PidStage) -> PidStage:
    return replace(
        small_stage(stage), batch_size=min(2, stage.batch_size), num_steps=min(STEPS, stage.num_steps)
    )


def prepare_decoder(recipe: PidRecipe, tiny_recipe: PidRecipe) -> None:
    """Write the pipeline that the tiny twin of a recipe of `l2p train-pid` names."""
    write_stand_in(recipe.teacher, tiny_recipe.teacher, recipe.seed)
