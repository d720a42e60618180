"""Distances that people see, on the features of VGG-16: LPIPS (Zhang et al., arXiv 1801.03924), which compares place by
place, and DISTS (Ding et al., arXiv 2004.07728), which lets one texture stand for another of its kind.

The small weights of both come with lpips and torchmetrics; VGG-16's own 528 MB do not, and nothing is downloaded unasked.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from l2p.errors import UserError
from l2p.evaluation.psnr_ssim import check_pair

if TYPE_CHECKING:
    from l2p.features import PerceptualDistance

BACKBONE = "vgg16-397923af.pth"  # torchvision's file name in torch's cache


def backbone_available() -> bool:
    """Whether the backbone's weights lie in torch's cache, so that no download would be tried."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE).is_file()


def lpips_distance(images: Tensor, reference: Tensor) -> Tensor:
    """LPIPS (VGG-16) of each picture, [B] float64 from 0 (equal) to about 1.

    Args:
        images, reference: [B, 3, H, W] in [-1, 1], at least 32 pixels a side.

    Raises:
        UserError: the backbone's weights are not in torch's cache.
        ValueError: shapes that differ.
    """
    check_pair(images, reference)
    _check_backbone("LPIPS")
    with torch.no_grad():
        return _lpips()(images.clamp(-1, 1).float(), reference.clamp(-1, 1).float()).double()


def dists_distance(images: Tensor, reference: Tensor) -> Tensor:
    """DISTS of each picture, [B] float64 from 0 (equal) to about 1, by torchmetrics.

    Args:
        images, reference: [B, 3, H, W] in [-1, 1], at least 32 pixels a side.

    Raises:
        UserError: the backbone's weights are not in torch's cache.
        ValueError: shapes that differ.
    """
    check_pair(images, reference)
    _check_backbone("DISTS")
    network = _dists().to(images.device)
    a, b = ((x.clamp(-1, 1).float() + 1) / 2 for x in (images, reference))
    return network(a, b).reshape(-1).double()


def _check_backbone(figure: str) -> None:
    if not backbone_available():
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"{figure} needs VGG-16's weights, and {folder / BACKBONE} is not there: on a machine with a network run "
            f"`python -c \"import lpips; lpips.LPIPS(net='vgg')\"` once, or leave {figure} out"
        )


@lru_cache(maxsize=1)
def _dists() -> nn.Module:
    from torchmetrics.functional.image.dists import DISTSNetwork

    return DISTSNetwork().eval()


@lru_cache(maxsize=1)
def _lpips() -> PerceptualDistance:
    from l2p.features import PerceptualDistance

    return PerceptualDistance("lpips")
