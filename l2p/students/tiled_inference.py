"""One step from a seed to 8 bits, with memory set by the work in flight and not by the picture.

Noise is drawn where it is looked at, the core reads it row by row, the head paints in bands, and each band goes to its
place among the 8-bit pixels at once. What grows with the picture is these pixels, three bytes each, and above
:data:`l2p.images.LARGE` bytes they lie in a file.

Legend: B batch, H W pixels, p patch side, h w token grid, d latent values of a token.
"""

from __future__ import annotations

import math
import os
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2p.errors import UserError
from l2p.images import LARGE, Pictures, to_uint8, uint8_levels
from l2p.patches import patchify, pixels
from l2p.students.heads import PatchHead

if TYPE_CHECKING:
    from l2p.flow import Noise
    from l2p.noise import PhiloxNoise
    from l2p.students.student import PixelStudent
    from l2p.teachers.protocol import Conditioning

BUDGET = 2 * 10**9  # bytes that painting may take beyond the weights on a CPU, unless told otherwise
GPU_SHARE = 0.9  # of the memory that is free on a GPU, where nothing else waits for it
CORE_WIDTHS = (
    16  # values a core token takes while a block runs, in widths of the core: SwiGLU alone takes eight
)
NOISE_BYTES = 64 * 2**20  # noise drawn at a time for the core, on a CPU


def default_budget(device: torch.device) -> int:
    """Bytes that painting may take where nobody says: of a GPU most of what is free there."""
    if device.type != "cuda":
        return BUDGET
    free = torch.cuda.mem_get_info(device)[0]
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
        device
    )  # by the allocator, for us
    return int(GPU_SHARE * (free + kept))


@torch.no_grad()
def generate_tiled(
    student: PixelStudent,
    noise: Noise | PhiloxNoise,
    conditioning: Conditioning,
    height: int,
    width: int,
    memory_budget: int | None = None,
) -> Pictures:
    """Pictures uint8 [B, height, width, 3] of pure noise in one step.

    On a GPU the 8 bits are made there and come to the host in one copy, the only time it waits.

    Args:
        noise: of at least this size, sides multiples of p; what is beyond is cut off.
        memory_budget: bytes that may be used beyond weights, noise states and the result, :func:`default_budget` if
            None; heads other than ``patch`` paint the picture whole and do not ask.

    Raises:
        UserError: not even the lowest band fits into the budget, or the result on the disk.
        ValueError: a pixel is NaN.
    """
    batch, _, noise_height, noise_width = noise.shape
    if memory_budget is None:
        memory_budget = default_budget(student.device)
    t = torch.ones(batch, device=student.device)
    out = _Levels(batch, height, width, student.device)
    picture = _Input(student, noise, keep=memory_budget // 4)
    features, c = student.core.run(
        picture.embedded(student.latent_time(t)),
        student.latent_time(t),
        conditioning,
        student.step_size(t, torch.zeros_like(t)),
    )
    if not isinstance(student.head, PatchHead):
        x_0 = student.head(features, c, picture.rows(0, noise_height), student.latent_time(t))
        out.put(0, x_0[:, :, :height, :width])
        return out.arrays()
    band = fit_band(student, noise.shape, memory_budget - picture.kept_bytes)
    context = student.head.context(features, c, picture.pooled, student.latent_time(t))
    for start in range(0, height, band):
        stop = min(start + band, noise_height)
        rows = student.head.rows(features, c, context, picture.rows, student.latent_time(t), start, stop)
        out.put(start, rows[:, :, : height - start, :width])
    return out.arrays()


def fit_band(student: PixelStudent, shape: tuple[int, ...], memory_budget: int) -> int:
    """Rows of the bands in which a patch head paints pictures of this shape [B, 3, H, W] within a budget.

    Raises:
        UserError: not even the lowest band fits.
    """
    (batch, _, height, width), p = shape, student.spec.patch_size
    itemsize = next(student.head.parameters()).element_size()
    core = batch * (height // p) * (width // p) * student.core.dim * CORE_WIDTHS * itemsize
    band = student.head.fit_band(memory_budget - core, batch, height, width, itemsize)
    if band is None:
        least = core + student.head.band_bytes(student.head.unit, batch, width, itemsize)
        raise UserError(
            f"a memory budget of {memory_budget / 1e9:.2f} GB is too small for {batch} x {height} x {width} pixels: "
            f"give {least / 1e9 + 0.01:.2f} GB or more, or draw smaller or fewer at once"
        )
    return band


class _Input:
    """What the core is given of pure noise, and the head after it, without ever holding it whole.

    Attributes:
        pooled: what the head asks of the whole (:meth:`PatchHead.pool`); None for other heads.
        kept_bytes: of the noise that is held all the same, as drawing it twice takes time: not more than ``keep``.
    """

    def __init__(self, student: PixelStudent, noise: Noise | PhiloxNoise, keep: int) -> None:
        self.student, self.noise = student, noise
        self.in_span = student.spec.project_noise
        batch, channels, height, width = noise.shape
        size = 4 * batch * channels * height * width
        # Drawn at once it takes half the time; what the head asks of noise in the span is in the latents.
        self._latents = noise.latents() if self.in_span and hasattr(noise, "latents") else None
        self._kept = noise.rows(0, height) if self._latents is None and size <= keep else None
        self.kept_bytes = 0 if self._kept is None or self.in_span else size
        self.pooled: Tensor | None = None

    def embedded(self, t: Tensor) -> Tensor:
        """The core's tokens [B, h, w, dim] at its time t [B]; finds ``pooled`` on the way."""
        batch, _, height, width = self.noise.shape
        p = self.student.spec.patch_size
        step = height
        if self.student.device.type == "cpu":
            step = max(1, NOISE_BYTES // (12 * batch * p * width)) * p
        head = self.student.head
        latents, pooled, tokens = [], [], []
        for start in range(0, height, step):
            stop = min(start + step, height)
            if self._latents is not None:  # nothing else of the noise is looked at, so nothing else is drawn
                rows = self.student.from_span(self._latents[:, start // p : stop // p])
            else:
                rows = patchify(self._drawn(start, stop), p)
                if self.in_span:
                    latents.append(self.student.to_span(rows))
                    rows = self.student.from_span(latents[-1])
            if isinstance(head, PatchHead):
                pooled.append(head.pool(rows))
            tokens.append(self.student.core.embed(rows, t))
        if latents:
            self._latents, self._kept = torch.cat(latents, dim=1), None
        self.pooled = torch.cat(pooled, dim=1) if pooled else None
        return torch.cat(tokens, dim=1)

    def rows(self, start: int, stop: int) -> Tensor:
        """Pixel rows [B, 3, stop - start, W]."""
        if not self.in_span:
            return self._drawn(start, stop)
        p = self.student.spec.patch_size
        first, last = start // p, -(-stop // p)
        x = pixels(self.student.from_span(self._latents[:, first:last]), p)
        return x[:, start - first * p : stop - first * p].permute(0, 3, 1, 2)

    def _drawn(self, start: int, stop: int) -> Tensor:
        drawn = self.noise.rows(start, stop) if self._kept is None else self._kept[:, :, start:stop]
        return drawn.to(self.student.device)


class _Levels:
    """The 8-bit pixels of a picture under way, on the device that paints it."""

    def __init__(self, batch: int, height: int, width: int, device: torch.device) -> None:
        self.shape, self.device = (batch, height, width, 3), device
        if device.type == "cuda":
            self._there = torch.empty(math.prod(self.shape) + 1, dtype=torch.uint8, device=device)
            self._pixels = self._there[:-1].view(self.shape)
            self._is_broken = torch.zeros((), dtype=torch.bool, device=device)
        else:
            self._pixels = _pixels(batch, height, width)

    def put(self, start: int, rows: Tensor) -> None:
        """Rows of x_0 [B, 3, rows, W] from row `start` on. Raises: ValueError for NaN, on a GPU by :meth:`arrays`."""
        stop = start + rows.shape[2]
        if self.device.type != "cuda":
            self._pixels[:, start:stop] = to_uint8(rows)
            return
        levels, is_broken = uint8_levels(rows)
        self._pixels[:, start:stop] = levels
        self._is_broken.logical_or_(is_broken)

    def arrays(self) -> Pictures:
        """All of them, on the host."""
        if self.device.type != "cuda":
            return self._pixels
        self._there[-1] = self._is_broken
        host = on_host(self._there)
        if host[-1]:
            raise ValueError("a picture holds NaN")
        return host[:-1].reshape(self.shape)


def to_levels(pictures: Tensor) -> Pictures:
    """:func:`l2p.images.to_uint8` of [B, 3, H, W], made where the pictures are. Raises: ValueError for NaN."""
    batch, _, height, width = pictures.shape
    levels = _Levels(batch, height, width, pictures.device)
    levels.put(0, pictures)
    return levels.arrays()


def on_host(x: Tensor) -> NDArray[np.uint8]:
    """A copy of `x` in pinned memory, which a GPU writes at the full speed of its bus; waits for it."""
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return host.numpy()


def _pixels(batch: int, height: int, width: int) -> Pictures:
    """An array for the result; a large one lies in a file that goes when nothing holds it any more.

    Raises:
        UserError: there is no room for the file.
    """
    shape = (batch, height, width, 3)
    size = int(np.prod(shape, dtype=np.int64))
    if size <= LARGE:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile(prefix="l2p-") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk found when a page is written would end the process
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise UserError(
                    f"no room for {size / 1e9:.2f} GB of pixels in {tempfile.gettempdir()} "
                    f"({os.strerror(error.errno).lower()}): free some, or set TMPDIR to another folder"
                ) from None
        return np.memmap(file, np.uint8, "w+", shape=shape)
