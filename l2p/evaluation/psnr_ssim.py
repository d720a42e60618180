"""How near a picture is to the one it should repeat, pixel for pixel and structure for structure."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_PSNR = 100.0  # dB; equal pictures would be infinite, which no mean and no JSON can hold


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, at most ``MAX_PSNR``.

    Args:
        images, reference: [B, 3, H, W] in [-1, 1]; what lies outside is clamped, as a display would.
    """
    check_pair(images, reference)
    error = (images.clamp(-1, 1) - reference.clamp(-1, 1)).double().square().mean((1, 2, 3))
    return (10 * torch.log10(4.0 / error.clamp_min(1e-30))).clamp_max(MAX_PSNR)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each picture, [B] in [-1, 1], 1 for equal pictures (Wang et al. 2004, by torchmetrics).

    Args:
        images, reference: [B, 3, H, W] in [-1, 1], at least 11 pixels a side, the width of the Gaussian window.

    Raises:
        ValueError: shapes that differ, or pictures below 11 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pair(images, reference)
    if min(images.shape[2:]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11 x 11, got {list(images.shape)}")
    # channels last: torchmetrics' depthwise convolution takes a third of the time then, on a CPU
    pair = [x.clamp(-1, 1).float().contiguous(memory_format=torch.channels_last) for x in (images, reference)]
    values = structural_similarity_index_measure(*pair, data_range=2.0, reduction="none")
    return values.reshape(-1).double()


def check_pair(images: Tensor, reference: Tensor) -> None:
    """Raises ValueError unless both are one shape [B, C, H, W]."""
    if images.shape != reference.shape or images.ndim != 4:
        raise ValueError(
            f"two equal shapes [B, C, H, W] expected, got {list(images.shape)} and {list(reference.shape)}"
        )
