"""``mean_flow``: the average velocity of a whole step, learnt without a teacher's trajectory (pMF, arXiv 2601.22158).

Notable:
- The student gives ``x_0(x_t, r, t)``, and ``u = (x_t - x_0) / max(t, t_min)`` is its average velocity from t down to r:
  at r = t the flow's own, at r = 0, t = 1 the one step from noise to picture.
- An average velocity obeys ``u + (t - r) du/dt = v`` along the flow (MeanFlow, arXiv 2505.13447, equation 6). The loss
  asks that of ``V = u + (t - r) sg(du/dt)`` against ``eps - x_0``; the derivative is taken along the student's own
  ``v = u(x_t, t, t)`` (improved MeanFlow, arXiv 2512.02012).
- The derivative is a forward-mode one, of a pass without gradient: exact, under bf16 autocast too, and gradient
  checkpointing, which only knows passes with one, is not in its way. It costs two passes beside the one that learns.
- Pairs ``0 <= r <= t <= 1`` fill the triangle; a share has r = t.

Legend: B batch, H W pixels, sg stop-gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from l2p import flow
from l2p.config import (
    FeatureScale,
    Float,
    Fraction,
    Logit,
    LogitDeviation,
    PerceptualTerms,
    PositiveFraction,
    TimeShift,
    Weight,
)
from l2p.errors import UserError
from l2p.features import FeatureSpec, PerceptualDistance, networks_of, shrink, shrink_factor
from l2p.objectives.base import Objective, StepContext

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import Recipe, StageConfig
    from l2p.teachers import Teacher


class MeanFlowObjective(Objective):
    """Mean flow with a student that predicts x_0 and is told where its step ends (``student.interval: true``).

    Args:
        mean, std: of the logits of the times, before ``shift``; of two draws the larger is t.
        shift: of the times towards the noise, as in ``flow``.
        equal: share of the batch with r = t, which learns the flow itself.
        t_min: bound of the division by t.
        power: each picture's squared error counts by ``1 / (error + 0.01)^power``, so that a few cannot drown the
            others (arXiv 2505.13447, section 4.3); 0 leaves it.
        noise: "fresh", or the pairs' own, whose paths are straighter.
        perceptual: weight of the distance of features between x_0 and the picture, where t is below ``perceptual_below``.
        perceptual_network: as in ``pairs``.
        feature_scale: as in ``pairs``.
    """

    name = "mean_flow"

    def __init__(
        self,
        *,
        teacher: Teacher,
        lift: Lift,
        weight: Weight = 1.0,
        mean: Logit = 0.0,
        std: LogitDeviation = 1.0,
        shift: TimeShift = 3.0,
        equal: Fraction = 0.5,
        t_min: PositiveFraction = 0.05,
        power: Annotated[Float, Field(ge=0, le=10)] = 1.0,
        noise: Literal["fresh", "coupled"] = "coupled",
        perceptual: Weight = 0.0,
        perceptual_network: PerceptualTerms = "encoder",
        perceptual_below: PositiveFraction = 0.8,
        feature_scale: FeatureScale = 0.5,
    ) -> None:
        super().__init__(weight)
        self.mean, self.std = mean, std
        self.shift = shift
        self.equal, self.noise = equal, noise
        self.t_min = t_min
        self.power = power
        self.perceptual = perceptual
        self.perceptual_below = perceptual_below
        self.shrink = shrink_factor(feature_scale)
        self._distance = (
            PerceptualDistance(perceptual_network, teacher) if self.weight and self.perceptual else None
        )

    @classmethod
    def networks_named(cls, knobs: Mapping[str, Any]) -> list[FeatureSpec]:
        return networks_of(knobs["perceptual_network"]) if knobs["weight"] and knobs["perceptual"] else []

    @classmethod
    def check(cls, knobs: Mapping[str, Any], recipe: Recipe, stage: StageConfig) -> None:
        if not recipe.student.interval:
            raise UserError(
                "objectives.mean_flow trains a student that is told where its step ends: set student.interval=true"
            )
        if recipe.student.head.kind == "unet":
            raise UserError(
                "objectives.mean_flow needs a forward-mode derivative, which the unet head's pooling lacks: "
                "set student.head.kind to patch"
            )

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        x_0, conditioning = ctx.batch.images, ctx.batch.conditioning
        r, t = self.times(ctx, len(x_0))
        eps = ctx.randn(*x_0.shape) if self.noise == "fresh" else ctx.batch.noise
        x_t = flow.add_noise(x_0, eps, t)

        def student(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
            return ctx.student(x, start, conditioning, end)

        slope = mean_velocity_slope(student, x_t, r, t, self.t_min)
        predicted = student(x_t, t, r).float()
        u = flow.velocity_from_x_0(x_t.float(), predicted, t, self.t_min)
        compound = u + flow.time_like(t - r, u) * slope
        error = (compound - flow.velocity(x_0, eps)).square().flatten(1).mean(1)  # [B]
        terms = {"velocity": (error / (error.detach() + 0.01) ** self.power).mean()}
        if self.perceptual:
            seen, even = t < self.perceptual_below, ctx.rand_columns(len(x_0), self._distance.num_random)
            distance = (
                predicted.sum() * 0
            )  # no picture is clean enough in some batches: the term is still there
            if seen.any():
                pictures = (shrink(picture[seen], self.shrink) for picture in (predicted, x_0))
                even = None if even is None else even[seen.cpu()]
                distance = self._distance(*pictures, even, t[seen]).sum() / len(x_0)
            terms["perceptual"] = self.perceptual * distance
        return terms

    def times(self, ctx: StepContext, count: int) -> tuple[Tensor, Tensor]:
        """Ends r and starts t [count] of the steps, r <= t."""
        drawn = torch.sigmoid(self.mean + self.std * ctx.randn(2, count, axis=1).float())
        r, t = flow.shift_time(drawn, self.shift).sort(dim=0).values
        share = ctx.rand(count).to(t)
        return torch.where(share < self.equal, t, r), t


def mean_velocity_slope(
    student: Callable[[Tensor, Tensor, Tensor], Tensor],
    x_t: Tensor,
    r: Tensor,
    t: Tensor,
    t_min: PositiveFraction,
) -> Tensor:
    """``du/dt`` [B, C, H, W] of the average velocity along the student's own flow, without gradient, in fp32.

    Args:
        student: ``(x_t, t [B], r [B]) -> x_0``.
    """
    with torch.no_grad():
        v = flow.velocity_from_x_0(x_t, student(x_t, t, t), t, t_min)
        # The memory-saving attentions have no forward-mode rule; the plain one has.
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            x_dual = forward_ad.make_dual(x_t.float(), v.float())
            t_dual = forward_ad.make_dual(t, torch.ones_like(t))
            u = flow.velocity_from_x_0(x_dual, student(x_dual, t_dual, r).float(), t_dual, t_min)
            return forward_ad.unpack_dual(u).tangent
