"""``color``: the picture's mean colours, cell by cell, as those of the target.

Small cells ask that a larger picture be, averaged down, the small one it was made of; large ones hold back casts, which no
pixel-wise term weighs enough against detail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from l2p.config import CellSides, Weight
from l2p.objectives.base import Objective, StepContext
from l2p.objectives.pairs import charbonnier

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.teachers import Teacher

EDGE = 1e-3  # where the distance turns from squared to absolute, in units of [-1, 1]


class ColorObjective(Objective):
    """Distance of cell means between the student's picture and the batch's.

    Args:
        cells: sides of the cells in pixels; each is a term.
        squared: weight of the squared distance beside the absolute one, which the PSNR of the small picture sees.
    """

    name = "color"

    def __init__(
        self,
        *,
        teacher: Teacher,
        lift: Lift,
        weight: Weight = 1.0,
        cells: CellSides = (4, 32),
        squared: Weight = 0.0,
    ) -> None:
        super().__init__(weight)
        self.cells, self.squared = tuple(cells), squared

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        terms = {}
        for cell in self.cells:
            x, target = (
                F.avg_pool2d(y.float(), cell, ceil_mode=True) for y in (ctx.picture, ctx.batch.images)
            )
            terms[f"cell_{cell}"] = charbonnier(x, target, EDGE) + self.squared * F.mse_loss(x, target)
        return terms
