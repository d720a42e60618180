"""``latents``: the core's one step from the noise against the latents that the teacher drew from the same noise.

The teacher's own final layer reads the guess off the core, and the head is not asked: a step costs a fraction of one in
pixels, and the map from noise to layout is learnt where it is simplest. ``pairs`` with ``target: decoder`` then teaches
the head to paint what the core guesses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from l2p.objectives.base import Objective, StepContext

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.teachers import Teacher


class LatentsObjective(Objective):
    """Mean squared error of the guessed latents; needs a head that keeps the teacher's final layer (``patch``)."""

    name = "latents"

    def __init__(self, *, teacher: Teacher, lift: Lift, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"mse": F.mse_loss(ctx.latents, ctx.batch.latents.float())}
