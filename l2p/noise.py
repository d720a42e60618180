"""Pixel noise of a seed, as a student and its teacher share it, by one of two generators.

- ``philox``: counter-based (:func:`l2p_kernels.philox_normal`), drawn on the device and where it is used. The latents
  ``w = A^T eps`` are white and are drawn directly, 64 numbers where a patch has thousands; what the lift does not span,
  ``(I - A A^T) f`` of other white noise f, is drawn where somebody sees it. The picture of a seed is the same on every
  device within the rounding of float32 (the integers are equal).
- ``mt19937``: torch's CPU generator in fp64 (:class:`l2p.flow.Noise`), equal to the last bit on every machine; the
  generator of students and corpora from before there was a choice.

Legend: B batch, H W pixels, p patch side, D = 3 p^2, d latent values of a token, h w token grid, A [D, d] the lift's basis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from l2p import flow
from l2p.errors import UserError
from l2p.patches import patchify, pixels
from l2p.runtime import no_autocast

Generator = Literal["philox", "mt19937"]
GENERATORS: tuple[str, ...] = get_args(Generator)
LATENTS, FREE = 0, 1  # streams of a seed


def check_generator(name: str) -> str:
    """The name. Raises: UserError for no generator's."""
    if name not in GENERATORS:
        raise UserError(f"the noise generator is {name!r}, expected {' or '.join(GENERATORS)}")
    return name


class PhiloxNoise:
    """White noise [B, 3, H, W] of seeds by Philox, drawn where it is used; row i of the batch is of seeds[i] alone.

    Args:
        seeds: 0 to 2^63 - 1.
        height, width: multiples of p.
        basis: A [D, d], orthonormal columns.
        device: where it is drawn; that of the basis if None.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        height: int,
        width: int,
        basis: Tensor,
        device: torch.device | str | None = None,
    ) -> None:
        self.seeds = [int(seed) for seed in seeds]
        self.shape = (len(self.seeds), 3, height, width)
        self.patch_size = math.isqrt(len(basis) // 3)
        self.device = torch.device(device) if device is not None else basis.device
        self._basis = basis.detach().to(self.device, torch.float32)

    def latents(self, first: int = 0, last: int | None = None) -> Tensor:
        """``A^T eps`` of the token rows [first, last): float32 [B, rows, w, d]."""
        return self._drawn(LATENTS, self._basis.shape[1], first, last)

    def rows(self, start: int, stop: int) -> Tensor:
        """Pixel rows [start, stop): float32 [B, 3, stop - start, W]."""
        p = self.patch_size
        first, last = start // p, -(-stop // p)
        free = self._drawn(FREE, len(self._basis), first, last)
        with no_autocast(free):
            tokens = free.add_((self.latents(first, last) - free @ self._basis) @ self._basis.T)
        x = pixels(tokens, p)[:, start - first * p : stop - first * p]
        return x.permute(0, 3, 1, 2).contiguous()

    def _drawn(self, stream: int, values: int, first: int, last: int | None) -> Tensor:
        from l2p_kernels import philox_normal

        columns = self.shape[3] // self.patch_size
        last = self.shape[2] // self.patch_size if last is None else last
        drawn = torch.empty(len(self.seeds), last - first, columns, values, device=self.device)
        for picture, seed in zip(drawn, self.seeds, strict=True):
            philox_normal(picture, seed, stream, first * columns * values)
        return drawn


def noise_of(
    generator: str,
    seeds: Sequence[int],
    height: int,
    width: int,
    basis: Tensor,
    device: torch.device | str | None = None,
) -> PhiloxNoise | flow.Noise:
    """Noise to be drawn: ``shape`` [B, 3, H, W] and ``rows(start, stop)``; by ``mt19937`` always on the CPU.

    Raises:
        UserError: an unknown generator.
    """
    if check_generator(generator) == "mt19937":
        return flow.Noise.of_seeds(seeds, 3, height, width)
    return PhiloxNoise(seeds, height, width, basis, device)


def pixel_noise(generator: str, seeds: Sequence[int], height: int, width: int, basis: Tensor) -> Tensor:
    """White noise float32 [B, 3, H, W] of seeds, on the device of the basis."""
    return noise_of(generator, seeds, height, width, basis).rows(0, height).to(basis.device)


def latent_noise(generator: str, seeds: Sequence[int], height: int, width: int, basis: Tensor) -> Tensor:
    """The teacher's side of :func:`pixel_noise`, ``A^T eps`` packed: float32 [B, h, w, d]; white as well."""
    noise = noise_of(generator, seeds, height, width, basis)
    if isinstance(noise, PhiloxNoise):
        return noise.latents()
    eps = patchify(noise.rows(0, height), math.isqrt(len(basis) // 3)).to(basis.device)
    return eps @ basis.to(eps)
