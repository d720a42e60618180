"""``flow``: many-step transfer. The student, told x_t and t, learns the mean of the clean pictures behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from l2p import flow
from l2p.config import Logit, LogitDeviation, PositiveFraction, TimeShift, Weight
from l2p.objectives.base import Objective, StepContext

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.teachers import Teacher


class FlowObjective(Objective):
    """Flow matching with a student that predicts x_0.

    Args:
        shift: times are logit-normal, then moved towards the noise by this factor; larger pictures need more, since
            neighbouring pixels average noise away. 1 leaves them.
        mean, std: of the logits of the times.
        weighting: "velocity" divides the squared error by ``max(t, t_min)^2``, so that an error counts as the velocity
            sees it (fine detail at small t); "x_0" leaves it, which favours composition at large t.
        t_min: bound of that division.
        noise: "fresh" noise teaches the whole flow; "coupled" noise is the batch's own, whose paths are straighter.
    """

    name = "flow"

    def __init__(
        self,
        *,
        teacher: Teacher,
        lift: Lift,
        weight: Weight = 1.0,
        shift: TimeShift = 3.0,
        mean: Logit = 0.0,
        std: LogitDeviation = 1.0,
        weighting: Literal["velocity", "x_0"] = "velocity",
        t_min: PositiveFraction = 0.05,
        noise: Literal["fresh", "coupled"] = "fresh",
    ) -> None:
        super().__init__(weight)
        self.shift, self.mean, self.std = shift, mean, std
        self.weighting, self.noise = weighting, noise
        self.t_min = t_min

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        x_0 = ctx.batch.images
        t = flow.shift_time(torch.sigmoid(self.mean + self.std * ctx.randn(len(x_0)).float()), self.shift)
        eps = ctx.randn(*x_0.shape) if self.noise == "fresh" else ctx.batch.noise
        predicted = ctx.student(flow.add_noise(x_0, eps, t), t, ctx.batch.conditioning)
        error = (predicted.float() - x_0.float()).square().flatten(1).mean(1)  # [B]
        if self.weighting == "velocity":
            error = error / t.clamp(min=self.t_min).square()
        return {self.weighting: error.mean()}
