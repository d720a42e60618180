"""Does a picture still say what it was made from? Back to latents, and down to few pixels.

A decoder may add detail, but the picture must encode to the latent it was decoded from, and must look the same from afar.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from l2p.evaluation.psnr_ssim import check_pair


@torch.no_grad()
def latent_cycle_error(images: Tensor, latents: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """``|encode(x) - z| / |z|`` of each picture, [B] float64: 0 for a perfect cycle, about 1.4 for another picture.

    Args:
        images: [B, 3, H, W] in [-1, 1].
        latents: z [B, c, h, w], from which the pictures were (or should have been) decoded.
        encode: pictures to latents, such as ``Teacher.encode``.

    Raises:
        ValueError: the encoder gives another shape than the latents have.
    """
    found = encode(images)
    if found.shape != latents.shape:
        raise ValueError(f"the encoder gives {list(found.shape)} where latents are {list(latents.shape)}")
    z = latents.double().flatten(1)
    return (found.double().flatten(1) - z).norm(dim=1) / z.norm(dim=1).clamp_min(1e-12)


def downsample_consistency(images: Tensor, reference: Tensor, factor: int = 8) -> Tensor:
    """Root mean square difference of each picture from its reference after both were averaged over ``factor`` squares.

    Args:
        images: [B, C, H, W] in [-1, 1].
        reference: [B, C, H, W], or already small, [B, C, H / factor, W / factor].

    Returns:
        [B] float64 in [0, 2]: 0 for detail that only adds, c for a cast of c in all channels.

    Raises:
        ValueError: a factor that does not divide the sides, or a reference of another size.
    """
    if factor < 1 or images.ndim != 4 or images.shape[2] % factor or images.shape[3] % factor:
        raise ValueError(f"{factor=} does not divide pictures of {list(images.shape)}")
    small = F.avg_pool2d(images.double(), factor)
    wanted = reference.double()
    if wanted.shape == images.shape:
        wanted = F.avg_pool2d(wanted, factor)
    check_pair(small, wanted)
    return (small - wanted).square().mean((1, 2, 3)).sqrt()
