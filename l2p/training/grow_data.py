"""What a student grows on: pictures of the large size, and what ties the student to them.

The batch of a step is a function of seed and step alone, so that a run which stopped goes on as if it had not.
:mod:`l2p.training.grow` says what is done with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from l2p import flow, runtime
from l2p.artifacts import SAMPLE, digest
from l2p.config import Fraction, PictureSize, SamplingSteps, Seed, Text, Weight, config
from l2p.corpus.photos import Photos
from l2p.errors import UserError
from l2p.images import Pictures, from_uint8
from l2p.landscapes import Scene, caption, render, render_batch
from l2p.patches import patchify, unpatchify
from l2p.seeds import SEEDS
from l2p.students.student import PixelStudent
from l2p.teachers import Teacher
from l2p.training.data import step_generator

if TYPE_CHECKING:
    from l2p.training.grow import GrowRecipe

FIRST_SCENE = SEEDS["grow"].start


@config
class GrowPictures:
    """Pictures to train on, of one size a step in turn: fresh renders, and a share of photographs."""

    sizes: Annotated[list[PictureSize], Field(min_length=1, max_length=64)] = field(
        default_factory=lambda: [[512, 512]]
    )
    photos: list[Text] = field(default_factory=list)
    photo_share: Fraction = 0.5
    first_scene: Seed = FIRST_SCENE
    inversion_steps: SamplingSteps = 8
    blur_low: Weight = 0.5
    blur_high: Weight = 2.0
    noise: Weight = 0.02
    patch_steps: Weight = 0.02


def check_sizes(sizes: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Heights and widths of the buckets. Raises UserError for none, or for sides that are no multiples of 8."""
    for size in sizes:
        if len(size) != 2 or any(type(side) is not int or side < 8 or side % 8 for side in size):
            raise UserError(f"pictures.sizes has {size}, expected [height, width], multiples of 8")
    if not sizes:
        raise UserError("pictures.sizes is empty, expected one size or more, as [[512, 512], [384, 640]]")
    return [(height, width) for height, width in sizes]


class Batches:
    """Batches for growing; the batch of a step is a function of seed and step alone."""

    def __init__(
        self,
        recipe: GrowRecipe,
        sizes: Sequence[tuple[int, int]],
        student: PixelStudent,
        teacher: Teacher,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.recipe, self.teacher, self.device, self.dtype = recipe, teacher, device, dtype
        p = student.spec.patch_size
        self.basis, self.patch_size = student.basis.double().clone(), p
        # Whole patches are drawn and rendered: a picture between two sizes is the larger one, cut.
        self.sizes = [(h + -h % p, w + -w % p) for h, w in sizes]
        config = recipe.pictures
        self.photos = (
            Photos(config.photos, *map(max, zip(*self.sizes, strict=True))) if config.photos else None
        )
        self.photo_share = config.photo_share if config.photos else 0.0
        self._order: tuple[int, list[int]] = (-1, [])  # of the photographs, and in which of their epochs

    @property
    def photos_sha256(self) -> str | None:
        """Hash of the photographs' names, captions, sizes and first bytes."""
        if self.photos is None:
            return None
        first = [hashlib.sha256(photo.read(SAMPLE)).hexdigest() for photo in self.photos.photos]
        told = [[photo.name, photo.caption, photo.size] for photo in self.photos.photos]
        return digest([told, first])

    @torch.no_grad()
    def batch(self, step: int) -> tuple[Tensor, tuple[Tensor, Tensor, Any, Tensor]]:
        """Pictures X and what the student is given: noise, times, captions and drafts [B, 3, H / g, W / g]."""
        config, count = self.recipe.pictures, self.recipe.optim.batch_size
        generator = step_generator(self.recipe.seed, "grow", step)
        pictures, captions = self.pictures(
            range(step * count, (step + 1) * count), self.sizes[step % len(self.sizes)]
        )
        x = from_uint8(pictures).to(self.device)
        height, width = x.shape[2:]
        small = F.avg_pool2d(x, self.recipe.factor)
        conditioning = self.teacher.encode_prompts(captions)
        with runtime.autocast(self.device, self.dtype):
            z = invert(self.teacher, small, conditioning, config.inversion_steps)
        noise = flow.noise_from([generator] * count, 3, height, width).to(self.device)
        noise = with_latents(noise, self.teacher.pack(z.float()), self.basis, self.patch_size)
        draft = soften(small, config, self.patch_size // self.recipe.factor, generator)
        return x, (noise, torch.ones(count, device=self.device), conditioning, draft)

    def examples(self, count: int) -> tuple[str, list[int], list[str], Pictures]:
        """What previews are compared with, at the first size: what it is, noise seeds, captions, pictures [N, H, W, 3].

        Renders that no step draws or, where a training sees none, its first photographs.
        """
        first, size = self.recipe.pictures.first_scene, self.sizes[0]
        seeds = [first - 1 - i for i in range(count)]
        if self.photo_share < 1:
            captions = [caption(Scene.from_seed(seed)) for seed in seeds]
            return "render of\nthe caption", seeds, captions, render_batch(seeds, *size)
        pictures, captions = self.pictures(range(count), size)
        return "photograph\nof the caption", seeds, captions, pictures

    def pictures(self, places: range, size: tuple[int, int]) -> tuple[Pictures, list[str]]:
        """The pictures uint8 [B, H, W, 3] and captions of these places in the whole training, whatever its batches."""
        taken = [
            int(place * self.photo_share) for place in (*places, places.stop)
        ]  # photographs before each place
        found = [
            self._photo(before, size) if after > before else self._render(place, size)
            for place, before, after in zip(places, taken[:-1], taken[1:], strict=True)
        ]
        pictures, captions = zip(*found, strict=True)
        return np.stack(pictures), list(captions)

    def _render(self, place: int, size: tuple[int, int]) -> tuple[Pictures, str]:
        scene = Scene.from_seed(self.recipe.pictures.first_scene + place)
        return render(scene, *size), caption(scene)

    def _photo(self, number: int, size: tuple[int, int]) -> tuple[Pictures, str]:
        """The number-th photograph that the training sees: all of them in one order, then in another one."""
        epoch, place = divmod(number, len(self.photos))
        if self._order[0] != epoch:
            shuffled = torch.randperm(
                len(self.photos), generator=step_generator(self.recipe.seed, "photos", epoch)
            )
            self._order = (epoch, shuffled.tolist())
        where = step_generator(self.recipe.seed, "crop", number)
        return self.photos.crop(self._order[1][place], *size, where)


@torch.no_grad()
def invert(teacher: Teacher, images: Tensor, conditioning: Any, steps: int) -> Tensor:
    """Latent noise [B, c, h, w] from which the teacher's flow, without guidance, leads to ``images``: its Euler steps
    run backwards, from the encoded picture to t = 1."""
    times = teacher.times(steps, *images.shape[2:]).flip(0)
    with runtime.weights_in_autocast_dtype(teacher.transformer):
        return flow.euler(
            lambda z_t, t: teacher.velocity(z_t, t, conditioning), teacher.encode(images).float(), times
        )


def with_latents(noise: Tensor, latents: Tensor, basis: Tensor, patch_size: int) -> Tensor:
    """Pixel noise [B, 3, H, W] whose part in the lift's span is that of latent tokens [B, h, w, d]; the rest stays."""
    tokens, basis = patchify(noise, patch_size), basis.to(noise)
    return unpatchify(tokens + (latents - tokens @ basis) @ basis.T, patch_size)


def soften(small: Tensor, config: GrowPictures, patch_size: int, generator: torch.Generator) -> Tensor:
    """Small pictures as a one-step student would have drawn them: blurred a little, each by another width, noisy, and
    with patches that do not quite meet."""
    low, high = config.blur_low, max(config.blur_low, config.blur_high)
    out = []
    for picture in small:
        sigma = low + (high - low) * float(torch.rand((), generator=generator))
        x = torch.arange(-4, 5, dtype=torch.float32)
        kernel = torch.exp(-(x**2) / (2 * max(sigma, 1e-3) ** 2))
        kernel = (kernel / kernel.sum()).to(small)
        padded = F.pad(picture[:, None], (4, 4, 4, 4), mode="replicate")
        out.append(F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0])
    spread = torch.randn(small.shape, generator=generator).to(small)
    x = torch.stack(out) + config.noise * spread
    return x + patch_errors(x.shape, patch_size, generator).to(x) * config.patch_steps


def patch_errors(shape: Sequence[int], patch_size: int, generator: torch.Generator) -> Tensor:
    """Errors [B, C, H, W] that end at patch borders: in each patch a plane of random height and slopes, of deviation 1
    in the mean over its pixels, and in each picture between none of it and twice as much."""
    b, c, height, width = shape
    grid = (b, c, -(-height // patch_size), -(-width // patch_size))
    level, down, right = (
        torch.randn(grid, generator=generator)
        .repeat_interleave(patch_size, 2)
        .repeat_interleave(patch_size, 3)[:, :, :height, :width]
        for _ in range(3)
    )
    ramp = torch.linspace(-1, 1, patch_size).repeat(max(grid[2:]))
    plane = (level + down * ramp[:height, None] + right * ramp[:width]) / (5 / 3) ** 0.5
    return plane * 2 * torch.rand(b, 1, 1, 1, generator=generator)
