"""Marks that repeat with the patch: what all patches of a picture have in common, however faint.

A picture's fine structure is cut into squares of the period. What they share is their mean, and by Parseval's theorem its
energy is all the power that stands on the multiples of ``1 / period``, along both axes and between them: harmonics of one
pattern are counted together, and a pattern that is half the period wide counts as well. Fine structure is first divided
by its own strength nearby, so that marks in a flat sky, where the eye finds them, are not drowned by leaves elsewhere.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

ALARM = 0.025  # photographs of scikit-image stay below 0.005, sets of renders near 0.012
_FINE = 5  # pixels of the window whose mean is taken off
_NEAR = 15  # pixels of the window in which the strength is measured
_FLOOR = 0.01  # deviation that counts as none: about one 8-bit level
_LEAST = 4  # squares along each axis


def grid_share(images: Tensor, period: int = 16) -> Tensor:
    """Share of each picture's fine energy that every square of ``period`` pixels repeats, [B] float64.

    About 0 for none (unbiased, so it may be a little below) up to 1. A pattern of variance e in white noise of variance
    s^2 gives ``e / (e + s^2)``, as far as it is finer than 5 pixels.

    Args:
        images: [B, C, H, W] in [-1, 1], at least 4 periods along each axis; the squares start at the top left.

    Raises:
        ValueError: smaller pictures, or a period below 2.
    """
    if images.ndim != 4 or period < 2:
        raise ValueError(
            f"images [B, C, H, W] and a period of at least 2 expected, got {list(images.shape)}, {period=}"
        )
    rows, columns = (side // period for side in images.shape[2:])
    if min(rows, columns) < _LEAST:
        raise ValueError(
            f"pictures of {images.shape[2]} x {images.shape[3]} hold no {_LEAST} periods of {period} px along each axis"
        )
    fine = images.float() - _box(images.float(), _FINE)
    strength = _box(fine.square().mean(1, keepdim=True), _NEAR).clamp_min(0).sqrt()
    fine = (fine / (strength + _FLOOR))[..., : rows * period, : columns * period].double()
    squares = fine.unflatten(3, (columns, period)).unflatten(2, (rows, period))  # [B, C, rows, p, columns, p]
    n = rows * columns
    shared = squares.mean((2, 4)).square().sum((1, 2, 3))
    energy = squares.square().sum((1, 2, 3, 4, 5)) / n
    # the mean of n unrelated squares still has an n-th of their energy
    return (n * shared - energy) / ((n - 1) * energy.clamp_min(1e-12))


def _box(x: Tensor, window: int) -> Tensor:
    """Mean over windows, cut off at the picture's edge: along one axis and then the other, for less work."""
    for axes in ((window, 1), (1, window)):
        x = F.avg_pool2d(x, axes, 1, (axes[0] // 2, axes[1] // 2), count_include_pad=False)
    return x
