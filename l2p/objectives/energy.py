"""``energy``: as much fine texture as the target has, wherever it lies.

A blurred picture pays, one with other leaves does not: what cannot be known may be invented, in the right amount.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from l2p.config import Weight
from l2p.objectives.base import Objective, StepContext

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.teachers import Teacher

CELL = 16  # pixels a side of the cells whose energy is compared


class EnergyObjective(Objective):
    """:func:`energy_distance` between the student's picture and the batch's."""

    name = "energy"

    def __init__(self, *, teacher: Teacher, lift: Lift, weight: Weight = 1.0) -> None:
        super().__init__(weight)

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"texture": energy_distance(ctx.picture.float(), ctx.batch.images.float())}


def energy_distance(x: Tensor, target: Tensor) -> Tensor:
    """Mean difference of the RMS of fine detail in cells of 16 x 16 pixels, at two scales; pictures [B, 3, H, W]."""
    total = torch.zeros((), device=x.device)
    for _ in range(2):
        total = total + (_energies(x) - _energies(target)).abs().mean()
        x, target = F.avg_pool2d(x, 2), F.avg_pool2d(target, 2)
    return total


def _energies(x: Tensor) -> Tensor:
    fine = x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (F.avg_pool2d(fine.square(), CELL, ceil_mode=True) + 1e-6).sqrt()
