"""Grow a student: a larger patch and resolution, its detail trained on true renders of the large size, or on photographs.

No teacher draws at the large size, but `landscapes` renders at any: pictures X, their captions, and as many as wanted.
For students of the wider world there are photographs (`pictures.photos`); a step may have both.
Two things tie them to the student. The detail's draft is the render's own small version, softened as drafts are, so that
target and draft agree to the pixel. And the noise is the one that the teacher's flow, run backwards from the small
picture, ends in: so the core's features tell of the very scene. What the detail cannot know (which leaf, which ripple) it
may invent from its noise, and is asked to invent as much of it as there is, of each period and direction: `spectrum`
(`energy` asks for an amount alone, and gets faint lines that are in no render).

The core and the small head stay frozen unless `train` says otherwise: what was right at the small size stays right.

Legend: X [B, 3, H, W] the picture, g the factor.
"""

from __future__ import annotations

from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from l2p import runtime
from l2p.artifacts import hash_model
from l2p.config import Count, DTypeName, Int, Seed, Text, Threads, Weight, config
from l2p.errors import UserError
from l2p.features import PerceptualDistance
from l2p.files import write_json
from l2p.images import Pictures, labelled_grid, save_png, to_uint8
from l2p.noise import pixel_noise
from l2p.objectives.energy import energy_distance
from l2p.objectives.pairs import charbonnier, step_distance
from l2p.objectives.spectrum import spectrum_distance
from l2p.recipe import REQUIRED, HeadConfig
from l2p.seeds import check_seeds
from l2p.students.grow import grow
from l2p.students.heads import DETAIL
from l2p.students.io import load_student, save_student
from l2p.students.pipeline import load_texts
from l2p.students.resolve import resolve_student
from l2p.students.student import PixelStudent
from l2p.teachers import load_teacher, teacher_sha256
from l2p.teachers.text import PromptEncoder
from l2p.training.engine.task import OptimConfig, Task, run_task, scaled
from l2p.training.grow_data import Batches, GrowPictures, check_sizes
from l2p.training.run_folder import TrainingFolder

EDGE = 1e-3  # where Charbonnier turns from squared to absolute, in units of [-1, 1]


@config
class GrowTerms:
    """Weights of the loss."""

    pixel: Weight = 1.0
    gradient: Weight = 1.0
    seam: Weight = 1.0
    perceptual: Weight = 0.5
    energy: Weight = 0.0
    spectrum: Weight = 4.0


@config
class GrowRecipe:
    """Everything `l2p grow` needs to know."""

    name: Text = REQUIRED
    output_dir: Text = "runs/${name}"
    seed: Seed = 0
    device: Text = "auto"
    dtype: DTypeName = "auto"
    threads: Threads | None = None
    student: Text = "runs/quickstart/student"
    teacher: Text = "landscapes"
    factor: Annotated[Int, Field(ge=1, le=64)] = 4
    train: Literal["detail", "all"] = "detail"
    gradient_checkpointing: bool = False
    band_height: Count | None = None
    head: HeadConfig = field(default_factory=lambda: HeadConfig(fine_patch=8))
    pictures: GrowPictures = field(default_factory=GrowPictures)
    terms: GrowTerms = field(default_factory=GrowTerms)
    optim: OptimConfig = field(default_factory=OptimConfig)
    preview_images: Annotated[Int, Field(ge=1, le=256)] = 6

    def __post_init__(self) -> None:
        scenes = max(1, self.optim.steps * self.optim.batch_size)
        check_seeds("grown student", self.pictures.first_scene, scenes, "pictures.first_scene")


def run(recipe: GrowRecipe, resume: bool = True) -> Path:
    """Grow, train, save; returns the folder of the grown student.

    Raises:
        UserError: sizes that are no multiples of 8, a student that cannot grow so, or a checkpoint of other settings.
    """
    sizes = check_sizes(recipe.pictures.sizes)
    folder = GrowFolder(recipe.output_dir, asdict(recipe), inputs_of(recipe))
    with folder.locked():
        folder.claim()
        if not resume:
            folder.clear()
        return _run(recipe, folder, sizes)


class GrowFolder(TrainingFolder):
    """The folder of one growth."""

    kind = "grow"
    stages = ("grow",)
    # more steps go on where fewer ended; the rest changes what is kept, or how it is computed
    no_effect = (
        "optim.steps", "optim.checkpoint_every", "preview_images", "gradient_checkpointing", "band_height",
    )  # fmt: skip
    owned = ("grow.json",)


def inputs_of(recipe: GrowRecipe) -> dict[str, str | None]:
    """Hashes of what the recipe names, by its keys."""
    return {
        "student.sha256": hash_model(resolve_student(recipe.student)),
        "teacher.sha256": teacher_sha256(recipe.teacher),
    }


def _run(recipe: GrowRecipe, folder: GrowFolder, sizes: list[tuple[int, int]]) -> Path:
    runtime.setup(recipe.threads, recipe.seed)
    device = runtime.pick_device(recipe.device)
    dtype = runtime.pick_dtype(recipe.dtype, device)
    source = resolve_student(recipe.student)
    small = load_student(source, device).float()
    small.check_lifted("grown")
    texts = load_texts(source, small.spec, device)
    teacher = load_teacher(
        recipe.teacher, folder.pinned_teacher(recipe.teacher), device, runtime.frozen_dtype(device, dtype)
    )
    torch.manual_seed(recipe.seed)  # of the detail's first weights
    student = grow(small, recipe.factor, {key: getattr(recipe.head, key) for key in DETAIL}).train()
    student.set_gradient_checkpointing(recipe.gradient_checkpointing)
    student.head.band_height = _bands(recipe)
    if recipe.train == "detail":
        student.core.requires_grad_(False), student.head.inner.requires_grad_(False)
    batches = Batches(recipe, sizes, student, teacher, device, dtype)
    distance = PerceptualDistance("encoder", teacher) if recipe.terms.perceptual else None

    def loss(batch: tuple[Tensor, tuple]) -> dict[str, Tensor]:
        x, given = batch
        with runtime.autocast(device, dtype):
            drawn = student(*given[:3], draft=given[3])
            return terms(drawn.float(), x, recipe.terms, recipe.head.fine_patch, distance)

    examples = batches.examples(recipe.preview_images)

    def preview(network: nn.Module, path: Path) -> None:
        show(network, texts, recipe, examples, dtype, path)

    folder.inputs["pictures.photos.sha256"] = batches.photos_sha256
    task = Task(student, recipe.optim, loss, batches.batch, preview)
    seconds = run_task(task, folder, "grow", device, scaled(dtype))
    extra = {"recipe": asdict(recipe), "stage": "grow"}
    student.spec.height, student.spec.width = sizes[0]
    save_student(student, folder.path / "student", text_encoder=texts, extra=extra)
    write_json(folder.path / "grow.json", {"seconds": round(seconds, 1), "steps": recipe.optim.steps})
    return folder.path / "student"


def _bands(recipe: GrowRecipe) -> int | None:
    band, fine = recipe.band_height, recipe.head.fine_patch
    if band is not None and band % fine:
        raise UserError(f"band_height is {band}, expected a multiple of head.fine_patch ({fine})")
    return band


def terms(
    x: Tensor, target: Tensor, weights: GrowTerms, fine_patch: int, distance: PerceptualDistance | None
) -> dict[str, Tensor]:
    """Weighted terms of drawn pictures against renders; those of weight 0 are left out."""
    found = {}
    if weights.pixel:
        found["pixel"] = weights.pixel * charbonnier(x, target, EDGE)
    if weights.gradient:
        found["gradient"] = weights.gradient * step_distance(x, target, EDGE)
    if weights.seam:
        found["seam"] = weights.seam * step_distance(x, target, EDGE, every=fine_patch)
    if weights.energy:
        found["energy"] = weights.energy * energy_distance(x, target)
    if weights.spectrum:
        found["spectrum"] = weights.spectrum * spectrum_distance(x.float(), target.float())
    if distance is not None:
        found["perceptual"] = weights.perceptual * distance(x, target).mean()
    return found


@torch.no_grad()
def show(
    student: PixelStudent,
    texts: PromptEncoder,
    recipe: GrowRecipe,
    examples: tuple[str, list[int], list[str], Pictures],
    dtype: torch.dtype,
    path: Path,
) -> None:
    """A grid: the small student's pictures upsampled, the grown ones of the same noise, examples of the same captions."""
    label, seeds, prompts, pictures = examples
    height, width = pictures.shape[1:3]
    rows: dict[str, list[Any]] = {"128 px,\nbicubic": [], "grown": []}
    drafts, grown = rows.values()
    keep = {}
    hook = student.head.inner.register_forward_hook(lambda module, args, out: keep.update(small=out.float()))
    for seed, prompt in zip(seeds, prompts, strict=True):
        noise = pixel_noise(student.spec.noise_generator, [seed], height, width, student.basis)
        with runtime.autocast(student.device, dtype):
            grown.append(to_uint8(student.sample(noise, texts([prompt]), 1)))
        large = F.interpolate(keep["small"], scale_factor=recipe.factor, mode="bicubic", align_corners=False)
        drafts.append(to_uint8(large))
    hook.remove()
    sheets = {name: np.concatenate(drawn) for name, drawn in rows.items()}
    save_png(labelled_grid(sheets | {label: pictures}, prompts), path)
