"""A second feature space beside the judge's: what the teacher's VAE encoder makes of a picture.

The judge knows what is in a picture, and has been trained to overlook the rest. The encoder has to keep enough to paint it
again. Where two distances agree, neither is an accident of its network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from l2p import runtime
from l2p.errors import UserError, warn
from l2p.objectives.features import EncoderFeatures

if TYPE_CHECKING:
    from l2p.teachers import Teacher


class EncoderLook:
    """``(pictures [B, 3, H, W]) -> [B, 2 C]``: mean and deviation over the cells of the encoder's deepest map."""

    def __init__(self, teacher: Teacher, dtype: torch.dtype) -> None:
        self._features, self.dtype = EncoderFeatures(teacher), dtype

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        with runtime.autocast(images.device, self.dtype):
            deepest = self._features(images)[-1].float().flatten(2)
        return torch.cat([deepest.mean(2), deepest.std(2)], dim=1)


def encoder_look(teacher: Teacher, dtype: torch.dtype) -> EncoderLook | None:
    """The teacher's, or None where its encoder shows no features."""
    try:
        return EncoderLook(teacher, dtype)
    except UserError as error:
        warn(f"the Frechet distance of the encoder's features is left out: {error}")
        return None
