"""Decoders side by side: the teacher's own with Lanczos above it, and the pixel diffusion decoder; one interface.

``decoder(source, seed) -> uint8 [H s, W s, 3]`` of a :class:`~l2p.decoders.sources.Source`.

Core and draft see the whole picture as long as they fit the memory, and the head paints it in bands, which changes no
pixel. Beyond that, and beyond the positions of the core, the latents are decoded in tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from l2p import flow
from l2p.decoders.pid import DecoderDraft, LatentConditioning, PidStudent
from l2p.decoders.tiles import ramps, spans
from l2p.errors import UserError
from l2p.images import Pictures, to_uint8
from l2p.runtime import autocast
from l2p.students.tiled_inference import BUDGET, CORE_WIDTHS

if TYPE_CHECKING:
    from l2p.decoders.sources import Source
    from l2p.teachers.protocol import Conditioning, Teacher
    from l2p.teachers.text import PromptEncoder

OVERLAP = 2  # tokens that neighbouring tiles share at least
SMALLEST = 2 * OVERLAP + 1  # tokens a side of a tile


class VaeDecoder:
    """The teacher's decoder, enlarged by Lanczos.

    Args:
        scale: 1, 2, 4 or 8.
    """

    def __init__(self, teacher: Teacher, scale: int = 1, dtype: torch.dtype = torch.float32) -> None:
        self.teacher, self.scale, self.dtype = teacher, scale, dtype

    @torch.no_grad()
    def __call__(self, source: Source, seed: int = 0) -> Pictures:
        """Raises UserError for noisy latents, of which it knows nothing."""
        if source.sigma:
            raise UserError(
                f"latents of noise level {source.sigma:g}: the VAE decodes clean ones alone, take --decoder pid"
            )
        with autocast(self.teacher.device, self.dtype):
            small = to_uint8(self.teacher.decode(source.latents.to(self.teacher.device)).float())[0]
        small = small[: source.height, : source.width]
        return lanczos(small, source.height * self.scale, source.width * self.scale)


def lanczos(picture: Pictures, height: int, width: int) -> Pictures:
    """A picture uint8 [H, W, 3] brought to another size."""
    from PIL import Image

    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


class PidDecoder:
    """A pixel diffusion decoder.

    Args:
        num_steps: Euler steps; what it was trained for if None.
        texts: reads prompts; None decodes without them.
        memory_budget: bytes beyond the weights.
        progress: called with the tiles done and their number.
    """

    def __init__(
        self,
        student: PidStudent,
        num_steps: int | None = None,
        dtype: torch.dtype = torch.float32,
        texts: PromptEncoder | None = None,
        memory_budget: int = BUDGET,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self.student, self.num_steps, self.dtype = student.eval(), num_steps, dtype
        self.texts, self.memory_budget, self.progress = texts, memory_budget, progress

    @property
    def scale(self) -> int:
        return self.student.spec.scale

    @torch.no_grad()
    def __call__(self, source: Source, seed: int = 0) -> Pictures:
        """Raises UserError for latents that are not this decoder's, or noisier than it was trained on."""
        spec = self.student.spec
        self.student.check(source.latents)
        if not 0 <= source.sigma <= spec.max_sigma:
            raise UserError(
                f"latents of noise level {source.sigma:g}, this decoder was trained from 0 to {spec.max_sigma:g}: "
                "let the teacher go further, or train with a higher noise.max_sigma"
            )
        captions = self.student.empty
        if source.prompt is not None and self.texts is not None:
            captions = self.texts([source.prompt]).to(self.student.device)
        picture = self.decode_array(source.latents.to(self.student.device), source.sigma, captions, seed)
        return picture[: source.height * spec.scale, : source.width * spec.scale]

    def decode_array(self, z: Tensor, sigma: float, captions: Conditioning, seed: int = 0) -> Pictures:
        """The picture uint8 [h f s, w f s, 3] of latents [1, c, h, w], padding and all."""
        spec, k = self.student.spec, self.student.spec.packing
        rows, columns = z.shape[2] // k, z.shape[3] // k
        tile = self.tile(rows, columns)
        unit = k * spec.cell
        noise = flow.Noise.of_seeds([seed], 3, rows * unit, columns * unit)
        if tile is None:
            told = LatentConditioning.of(captions, z, sigma)
            return to_uint8(self._sample(noise.rows(0, rows * unit).to(z.device), told))[0]
        down, across = (spans(size, tile, min(OVERLAP, tile - 1)) for size in (rows, columns))
        weights = [ramps(places, unit) for places in (down, across)]
        out = np.empty((rows * unit, columns * unit, 3), np.uint8)
        done, band, finished = 0, None, 0
        for number, (top, bottom) in enumerate(down):
            drawn = noise.rows(top * unit, bottom * unit)
            strip = torch.zeros(3, (bottom - top) * unit, columns * unit)
            for place, weight in zip(across, weights[1], strict=True):
                left, right = place
                part = z[:, :, top * k : bottom * k, left * k : right * k]
                told = LatentConditioning.of(captions, part, sigma)
                painted = self._sample(drawn[:, :, :, left * unit : right * unit].to(z.device), told)[0].cpu()
                strip[:, :, left * unit : right * unit] += painted * weight
                done += 1
                if self.progress is not None:
                    self.progress(done, len(down) * len(across))
            strip *= weights[0][number][:, None]
            if band is not None:  # the rows that the strip above shares with this one
                strip[:, : band.shape[1]] += band
            after = down[number + 1][0] if number + 1 < len(down) else bottom
            out[finished * unit : after * unit] = to_uint8(strip[None, :, : (after - top) * unit])[0]
            band, finished = strip[:, (after - top) * unit :], after
        return out

    def _sample(self, noise: Tensor, conditioning: LatentConditioning) -> Tensor:
        unit = self.student.spec.packing * self.student.spec.cell
        self.student.head.band_height = self.band(noise.shape[2] // unit, noise.shape[3] // unit)
        with autocast(noise.device, self.dtype):
            return self.student.sample(noise, conditioning, self.num_steps).float()

    def tile(self, rows: int, columns: int) -> int | None:
        """Tokens a side of a tile for so many; None paints the whole.

        Raises:
            UserError: not even the smallest tile fits the budget.
        """
        limit = min(self.student.spec.core["axes_lens"][1:]) // self.student.spec.upsample
        if max(rows, columns) <= limit and self.bytes_for(rows, columns) <= self.memory_budget:
            return None
        tile = SMALLEST
        if self.bytes_for(tile, tile) > self.memory_budget:
            raise UserError(
                f"a memory budget of {self.memory_budget / 1e9:.2f} GB is too small for a tile: give "
                f"{self.bytes_for(tile, tile) / 1e9 + 0.01:.2f} GB or more"
            )
        while (
            tile < min(limit, max(rows, columns)) and self.bytes_for(tile + 1, tile + 1) <= self.memory_budget
        ):
            tile += 1
        return tile

    def bytes_for(self, rows: int, columns: int) -> int:
        """Least bytes in flight while so many tokens are painted: pictures, and the largest of draft, core and a band."""
        spec, head = self.student.spec, self.student.head
        width = columns * spec.packing * spec.cell
        band = head.band_bytes(head.unit, 1, width, self.dtype.itemsize)
        return self._pictures(rows, columns) + max(self._before(rows, columns), band)

    def band(self, rows: int, columns: int) -> int:
        """Pixel rows that the head paints at a time; the picture is the same for any."""
        spec, head = self.student.spec, self.student.head
        left = self.memory_budget - self._pictures(rows, columns)
        return (
            head.fit_band(
                left,
                1,
                rows * spec.packing * spec.cell,
                columns * spec.packing * spec.cell,
                self.dtype.itemsize,
            )
            or head.unit
        )

    def _pictures(self, rows: int, columns: int) -> int:
        """Bytes of noise, picture, what a step makes of them, and the draft, in fp32."""
        unit = self.student.spec.packing * self.student.spec.cell
        return 4 * 4 * 3 * rows * columns * unit**2

    def _before(self, rows: int, columns: int) -> int:
        """Bytes that core and draft take, one after the other, before the head begins."""
        spec, itemsize = self.student.spec, self.dtype.itemsize
        core = rows * columns * spec.upsample**2 * self.student.core.dim * CORE_WIDTHS * itemsize
        if not isinstance(self.student.draft, DecoderDraft):
            return core
        # The last blocks of a decoder hold some six maps of their width at full size, norms among them in fp32.
        wide = max(spec.draft["block_out_channels"][:2])
        return max(core, 6 * 4 * wide * rows * columns * spec.geometry.token_pixels**2)
