"""Repeated texture: the share of a picture that is a copy of another part of it.

Networks that run out of ideas repeat a patch. A copy shows as a peak in the picture's autocorrelation at its shift, and
then, pixel by pixel, as a neighbourhood that agrees with the one a shift away. Things that merely resemble each other
(bricks, leaves, ripples) do not agree to that degree.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ALARM = 0.01  # share of the picture: real photographs and renders stay below 0.004
AGREEMENT = 0.99  # correlation of two neighbourhoods that makes them copies
_WINDOW = 15  # pixels a side of a neighbourhood
_CANDIDATES = 12  # shifts looked at closely, the highest peaks first
_BOTH_WAYS = 0.1  # least ratio of the gradient energies across and along
_FLOOR = 0.02  # deviation below which an area is even, and everything agrees with everything


def repeated_share(images: Tensor, nearest: int = 8) -> Tensor:
    """Share of each picture's area that is copied from elsewhere in it, [B] float64 in [0, 1].

    Args:
        images: [B, C, H, W] in [-1, 1], at least 32 x 32.
        nearest: shortest shift in pixels; nearer than that, every smooth picture resembles itself.

    Raises:
        ValueError: other shapes, or smaller pictures.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 32:
        raise ValueError(f"images must be [B, C, H, W] of at least 32 x 32, got {list(images.shape)}")
    return torch.stack([_share(picture.float().mean(0), nearest) for picture in images])


def _share(grey: Tensor, nearest: int) -> Tensor:
    fine = grey - _box(grey)  # shapes and shading repeat in every landscape: only what is finer is compared
    deviation = _box(fine.square()).clamp_min(0).sqrt()
    copied, textured = torch.zeros_like(grey, dtype=torch.bool), _textured(fine)
    for down, right in _shifts(fine / (deviation + _FLOOR), nearest):
        here, there = _overlap(fine, down, right)
        both = _box(here * there)
        scale = (_box(here.square()) * _box(there.square())).clamp_min(1e-12).sqrt()
        agree = (both / scale > AGREEMENT) & (scale > _FLOOR**2) & _overlap(textured, down, right)[0]
        for part in _overlap(copied, down, right):
            part |= agree
    return copied.double().mean()


def _shifts(fine: Tensor, nearest: int) -> list[tuple[int, int]]:
    """Shifts (down, right) at which the picture resembles itself most, one a peak."""
    height, width = fine.shape
    spectrum = torch.fft.rfft2(fine, s=(2 * height, 2 * width))  # twice the size: no wrapping around
    peaks = torch.fft.fftshift(torch.fft.irfft2(spectrum.abs().square(), s=(2 * height, 2 * width)))
    down = torch.arange(-height, height)[:, None]
    right = torch.arange(-width, width)[None]
    # what stays of both pictures shrinks with the shift, and a shift and its opposite are one
    allowed = (down.square() + right.square() >= nearest**2) & ((down > 0) | ((down == 0) & (right > 0)))
    allowed &= (down < height - _WINDOW) & (right.abs() < width - _WINDOW)
    highest = F.max_pool2d(peaks[None, None], 5, 1, 2)[0, 0]
    sharp = peaks - F.avg_pool2d(peaks[None, None], 9, 1, 4)[0, 0]
    sharp = torch.where(allowed & (peaks == highest), sharp, -torch.inf)
    best = sharp.flatten().topk(_CANDIDATES)
    places = [divmod(int(i), 2 * width) for i, v in zip(best.indices, best.values, strict=True) if v > 0]
    return [(y - height, x - width) for y, x in places]


def _overlap(x: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """Views of what lies under a shifted copy, and of the copy."""
    height, width = x.shape
    here = x[: height - down, max(0, -right) : width - max(0, right)]
    return here, x[down:, max(0, right) : width - max(0, -right)]


def _box(x: Tensor) -> Tensor:
    """Mean over windows, cut off at the picture's edge; by running sums, as cheap for any window."""
    mean = x.double()  # differences of long sums
    for axis, size in enumerate(x.shape):
        place = torch.arange(size, device=x.device)
        first, last = (place - _WINDOW // 2).clamp_min(0), (place + _WINDOW // 2).clamp_max(size - 1)
        total = mean.cumsum(axis)
        window = (
            total.index_select(axis, last) - total.index_select(axis, first) + mean.index_select(axis, first)
        )
        mean = window / (last - first + 1).unsqueeze(1 - axis)
    return mean.to(x.dtype)


def _textured(fine: Tensor) -> Tensor:
    """Where a neighbourhood has structure in both directions: a straight edge always resembles itself further along."""
    y = F.pad(fine[2:] - fine[:-2], (0, 0, 1, 1)) / 2
    x = F.pad(fine[:, 2:] - fine[:, :-2], (1, 1)) / 2
    yy, xx, yx = _box(y * y), _box(x * x), _box(y * x)
    middle, spread = (yy + xx) / 2, ((yy - xx).square() / 4 + yx.square()).sqrt()
    return middle - spread > _BOTH_WAYS * (middle + spread)  # the eigenvalues of the structure tensor
