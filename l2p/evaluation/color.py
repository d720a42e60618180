"""Colour drift: how far colours have moved, in CIEDE2000, the unit of which an attentive eye just sees.

Colours are averaged over cells before they are compared, so that detail and small shifts do not count and casts do:
one cell is the whole picture's cast, a grid of cells finds a cast that sits in one corner.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from l2p.evaluation.psnr_ssim import check_pair

CELLS = 4  # a side of the grid on which local casts are sought
ALARM = 5.0  # a cast that nobody overlooks; 1 is just visible


def color_difference(images: Tensor, reference: Tensor, cells: int = CELLS) -> Tensor:
    """CIEDE2000 between the mean colours of ``cells x cells`` parts of each picture, [B, cells, cells] float64.

    Args:
        images, reference: [B, 3, H, W], sRGB in [-1, 1], at least ``cells`` pixels a side.

    Raises:
        ValueError: shapes that differ, or pictures smaller than the grid.
    """
    from skimage.color import deltaE_ciede2000, rgb2lab

    check_pair(images, reference)
    if cells < 1 or min(images.shape[2:]) < cells:
        raise ValueError(f"a grid of {cells} x {cells} does not fit pictures of {list(images.shape)}")
    lab = [rgb2lab(_linear_mean(pictures, cells)) for pictures in (images, reference)]
    return torch.from_numpy(deltaE_ciede2000(*lab))


def color_drift(images: Tensor, reference: Tensor) -> Tensor:
    """CIEDE2000 between the mean colours of each picture and its reference, [B] float64; 0 is none, 1 just visible."""
    return color_difference(images, reference, 1).flatten()


def _linear_mean(images: Tensor, cells: int) -> np.ndarray:
    """Mean colours [B, cells, cells, 3] as sRGB in [0, 1]; light adds up linearly, so the mean is taken there."""
    s = (images.float().clamp(-1, 1) + 1) / 2  # half of the time of float64, and exact to 1e-3 in CIEDE2000
    linear = torch.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1
    mean = F.adaptive_avg_pool2d(linear, cells).double()
    srgb = torch.where(mean <= 0.0031308, 12.92 * mean, 1.055 * mean.clamp_min(1e-12) ** (1 / 2.4) - 0.055)
    return srgb.permute(0, 2, 3, 1).cpu().numpy()
