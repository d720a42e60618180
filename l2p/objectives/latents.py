"""``latents``: the core's one step from the noise against the latents that the teacher drew from the same noise.

The teacher's own final layer reads the guess off the core, and the head is not asked: a step costs a fraction of one in
pixels, and the map from noise to layout is learnt where it is simplest. ``pairs`` with ``target: decoder`` then teaches
the head to paint what the core guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from l2p.config import Weight
from l2p.errors import UserError
from l2p.objectives.base import Objective, StepContext

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import Recipe, StageConfig
    from l2p.teachers import Teacher


class LatentsObjective(Objective):
    """Mean squared error of the guessed latents; needs a head that keeps the teacher's final layer (``patch``)."""

    name = "latents"

    def __init__(self, *, teacher: Teacher, lift: Lift, weight: Weight = 1.0) -> None:
        super().__init__(weight)

    @classmethod
    def check(cls, knobs: Mapping[str, Any], recipe: Recipe, stage: StageConfig) -> None:
        check_latents("objectives.latents", recipe)

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"mse": F.mse_loss(ctx.latents, ctx.batch.latents.float())}


def check_latents(key: str, recipe: Recipe) -> None:
    """Refuse a recipe whose student's core guesses no latents, for the setting `key` that needs them. Raises: UserError."""
    if recipe.student.head.kind != "patch":
        raise UserError(
            f"{key} reads latents off the core, for which a {recipe.student.head.kind} head has no layer: "
            "set student.head.kind=patch"
        )
    if recipe.student.num_steps != 1:
        raise UserError(
            f"{key} is for students of one step, this one has {recipe.student.num_steps}: set student.num_steps=1 "
            "or leave it out"
        )
