"""How near a picture is to the one it should repeat, pixel for pixel."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_PSNR = 100.0  # dB; equal pictures would be infinite, which no mean and no JSON can hold


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, at most ``MAX_PSNR``.

    Args:
        images, reference: [B, 3, H, W] in [-1, 1]; what lies outside is clamped, as a display would.
    """
    if images.shape != reference.shape or images.ndim != 4:
        raise ValueError(
            f"two equal shapes [B, C, H, W] expected, got {list(images.shape)} and {list(reference.shape)}"
        )
    error = (images.clamp(-1, 1) - reference.clamp(-1, 1)).double().square().mean((1, 2, 3))
    return (10 * torch.log10(4.0 / error.clamp_min(1e-30))).clamp_max(MAX_PSNR)
