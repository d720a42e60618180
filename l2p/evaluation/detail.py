"""Detail: energy of a picture's finest structure, for telling soft pictures from sharp ones.

The Frechet distance on the judge's features forgives softness: with 256 pictures and a floor of 2.3 it gives 2.7 for a
blur of one pixel, 3.1 for pictures brought to half their size and back, 11.5 for a quarter (and 4.3 for a tint of 0.05,
6.4 for 64 pictures shown four times). This ratio falls to a quarter where that distance has hardly moved.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def detail_energy(images: Tensor) -> Tensor:
    """Mean squared Laplacian of each picture, [B] float64.

    Args:
        images: [B, C, H, W] in [-1, 1], at least 3 x 3.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 3:
        raise ValueError(f"images must be [B, C, H, W] of at least 3 x 3, got {list(images.shape)}")
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64, device=images.device)
    channels = images.shape[1]
    edges = F.conv2d(images.double(), kernel.expand(channels, 1, 3, 3), groups=channels)
    return edges.square().mean((1, 2, 3))
