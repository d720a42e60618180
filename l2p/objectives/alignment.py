"""``alignment``: the core's features are drawn to those of a frozen network on the picture that it is to draw.

REPA (arXiv 2410.06940) with the student's core: a small projector turns its tokens into the network's, and their cosine is
the loss. The core's last features are taken, those that the head reads; the head is not run.

The projector has an optimiser of its own. It takes its step on the same loss, with the core's features as they are, just
before the student's: its gradient is that of the joint loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2p.config import LearningRate, Text, Weight, Width
from l2p.errors import UserError
from l2p.features import FeatureSpec, load_features
from l2p.features.base import widened
from l2p.objectives.base import CriticObjective, StepContext, call_frozen

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import Recipe, StageConfig
    from l2p.teachers import Teacher


class AlignmentObjective(CriticObjective):
    """One minus the mean cosine of the projected core's tokens and a frozen network's.

    Args:
        features: the network (:mod:`l2p.features`) that sees the teacher's picture; of several layers the last counts.
        width: of the projector's two hidden layers.
        critic_learning_rate: of the projector.
    """

    name = "alignment"
    critic_betas = (0.9, 0.95)  # nothing adversarial: the projector has the student's own aim

    def __init__(
        self,
        *,
        teacher: Teacher,
        lift: Lift,
        weight: Weight = 0.5,
        features: Text = "timm:vit_base_patch14_dinov2.lvd142m",
        width: Width = 1024,
        critic_learning_rate: LearningRate = 1e-3,
    ) -> None:
        super().__init__(weight, critic_learning_rate)
        self._features = load_features(features, teacher)
        (core_dim,) = load_features("transformer", teacher).channels
        self.projector = nn.Sequential(
            nn.Linear(core_dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, self._features.channels[-1]),
        )

    @classmethod
    def networks_named(cls, knobs: Mapping[str, Any]) -> list[FeatureSpec]:
        return [FeatureSpec.parse(knobs["features"])] if knobs["weight"] else []

    @classmethod
    def check(cls, knobs: Mapping[str, Any], recipe: Recipe, stage: StageConfig) -> None:
        super().check(knobs, recipe, stage)
        if FeatureSpec.parse(knobs["features"]).kind == "transformer":
            raise UserError(
                "objectives.alignment.features=transformer is what the core began as: choose timm:NAME or encoder"
            )
        if recipe.student.core is not None:
            raise UserError(
                "objectives.alignment projects the features of the teacher's own transformer: leave student.core out"
            )

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"cosine": alignment_loss(call_frozen(self.projector, ctx.core_features), self._wanted(ctx))}

    def critic_loss(self, ctx: StepContext) -> dict[str, Tensor]:
        projected = self.projector(ctx.core_features.detach().float())
        return {"loss": alignment_loss(projected, self._wanted(ctx))}

    @torch.no_grad()
    def _wanted(self, ctx: StepContext) -> Tensor:
        return self._features.maps(ctx.batch.images)[-1]


def alignment_loss(tokens: Tensor, wanted: Tensor) -> Tensor:
    """One minus the mean cosine of tokens [B, h, w, C] and a map [B, C, h', w'], which is averaged or enlarged to their grid."""
    wanted = widened(wanted)
    if tuple(wanted.shape[2:]) != tuple(tokens.shape[1:3]):
        wanted = F.interpolate(
            wanted, tokens.shape[1:3], mode="bilinear", antialias=True, align_corners=False
        )
    return 1 - F.cosine_similarity(widened(tokens), wanted.movedim(1, -1), dim=-1, eps=1e-5).mean()
