"""LPIPS: the distance that people see, on the features of VGG-16 (Zhang et al., arXiv 1801.03924)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from l2p.errors import UserError
from l2p.evaluation.fidelity import check_pair

if TYPE_CHECKING:
    from l2p.objectives.features import LpipsDistance

BACKBONE = "vgg16-397923af.pth"  # torchvision's file name in torch's cache


def lpips_available() -> bool:
    """Whether the backbone's weights lie in torch's cache, so that no download would be tried."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE).is_file()


def lpips_distance(images: Tensor, reference: Tensor) -> Tensor:
    """LPIPS (VGG-16) of each picture, [B] float64 from 0 (equal) to about 1.

    Args:
        images, reference: [B, 3, H, W] in [-1, 1], at least 32 pixels a side.

    Raises:
        UserError: the backbone's weights (528 MB) are not in torch's cache; nothing is downloaded unasked.
        ValueError: shapes that differ.
    """
    check_pair(images, reference)
    if not lpips_available():
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"LPIPS needs VGG-16's weights, and {folder / BACKBONE} is not there: on a machine with a network run "
            "`python -c \"import lpips; lpips.LPIPS(net='vgg')\"` once, or leave LPIPS out"
        )
    with torch.no_grad():
        return _network()(images.clamp(-1, 1).float(), reference.clamp(-1, 1).float()).double()


@lru_cache(maxsize=1)
def _network() -> LpipsDistance:
    from l2p.objectives.features import LpipsDistance

    return LpipsDistance()
