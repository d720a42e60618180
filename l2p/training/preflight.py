"""What a recipe would build, built without weights: mistakes are found before anything is drawn, trained or fetched."""

from __future__ import annotations

import torch

from l2p.errors import UserError
from l2p.lift import Lift
from l2p.objectives import build_objectives, sees_foreign_networks
from l2p.recipe import Recipe
from l2p.students.build import from_teacher, published_student
from l2p.teachers import LatentGeometry, Teacher, published_as, published_configs
from l2p.teachers.shapes import meta_teacher

TRAINING = ("transfer", "one_step", "match")


def check_build(recipe: Recipe) -> None:
    """Build student and objectives on the meta device.

    A teacher that is not here yet is known by its published sizes, or not at all: then the run finds out once it is.

    Raises:
        UserError: sizes of head, core, picture or patch that do not fit one another or the teacher, LoRA targets that the
            core has not, a pretrained head of other sizes, objectives that want what the teacher lacks.
    """
    if not recipe.corpus.latents:
        raise UserError("corpus.latents is false, but students are trained on latents, too: set it to true")
    size, config = (recipe.teacher.height, recipe.teacher.width), recipe.student
    published = published_as(recipe.teacher.path)
    try:
        teacher = meta_teacher(recipe.teacher.path)
    except (OSError, ValueError, ImportError, AttributeError, TypeError, KeyError):
        return  # broken or newer than what is installed: loading it says what is wrong
    if teacher is not None:
        _check_sizes(recipe, teacher.geometry)
        _build(recipe, teacher, size)
    elif published is not None:
        entry = published[1]
        _check_sizes(recipe, LatentGeometry(entry.channels, entry.compression, entry.packing))
        if recipe.teacher.path.partition("@")[0] in published_configs():
            published_student(recipe.teacher.path, config, size, recipe.teacher.guidance_scale)


def _check_sizes(recipe: Recipe, geometry: LatentGeometry) -> None:
    side = geometry.token_pixels
    for name in ("height", "width"):
        value = getattr(recipe.teacher, name)
        if value % side:
            near = max(side, round(value / side) * side)
            raise UserError(
                f"teacher.{name} is {value}, expected a multiple of {side}, the pixels of a token: set teacher.{name}={near}"
            )
    tokens = (recipe.teacher.height // side) * (recipe.teacher.width // side)
    least = geometry.token_dim // tokens + 1
    if recipe.lift.num_images < least:
        raise UserError(
            f"lift.num_images is {recipe.lift.num_images}, too few for {geometry.token_dim} latent values a token: "
            f"set lift.num_images={least} or more"
        )


def _build(recipe: Recipe, teacher: Teacher, size: tuple[int, int]) -> None:
    geometry = teacher.geometry
    pixels = 3 * geometry.token_pixels**2
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        basis = torch.zeros(pixels, geometry.token_dim, dtype=torch.float64)
        lift = Lift(basis, 1.0, torch.zeros(pixels, dtype=torch.float64), 1.0, 1.0, 1.0)
        from_teacher(teacher, lift, recipe.student, size, recipe.teacher.guidance_scale)
        for stage in TRAINING:
            config = getattr(recipe, stage)
            if not config.enabled:
                continue
            # what needs a download, or a student of its own, is known when it is there
            objectives = {
                name: options
                for name, options in config.objectives.items()
                if not sees_foreign_networks(name, options) and options.get("score", "teacher") == "teacher"
            }
            if not any(options.get("weight", 1.0) for options in objectives.values()):
                continue
            try:
                build_objectives(objectives, teacher=teacher, lift=lift)
            except UserError as error:
                raise UserError(f"{stage}: {error}") from None
            except (
                RuntimeError
            ) as error:  # a critic is as wide as features that depend on values, as captions do
                if "meta tensors" not in str(error):
                    raise
