"""Detail: energy of a picture's finest structure, for telling soft pictures from sharp ones.

The Frechet distance on the judge's features forgives softness. Measured on 256 real renders, floor 2.3: a blur of one
pixel gives 2.7, a reduction to half the size and back 3.1, to a quarter 11.5 (a tint of 0.05: 4.3; 64 pictures shown
four times: 6.4; noise of 0.05: 2.3). Their detail energies over the clean ones are 0.06, 0.04, 0.01 (1.0; 0.9; 2.9).
"""

from __future__ import annotations

import torch
from torch import Tensor


def detail_energy(images: Tensor) -> Tensor:
    """Mean squared Laplacian of each picture, [B] float64.

    Args:
        images: [B, C, H, W] in [-1, 1], at least 3 x 3.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 3:
        raise ValueError(f"images must be [B, C, H, W] of at least 3 x 3, got {list(images.shape)}")
    x = images.float()  # levels of 8 bits: their differences are exact to a millionth
    edges = (
        x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2] - 4 * x[..., 1:-1, 1:-1]
    )
    return edges.square().mean((1, 2, 3), dtype=torch.float64)
