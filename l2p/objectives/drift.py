"""``drift``: distribution matching with one network and one loss (Generative Modeling via Drifting, arXiv 2602.04770).

Notable:
- Features of the student's pictures are drawn to those of the teacher's pictures and pushed from each other, by
  weights that a kernel ``exp(-|x - y| / tau)`` gives, normalised over both its rows and its columns.
- The field is antisymmetric: with the two sides swapped it changes its sign. So where both distributions are the same
  its mean is zero, and nothing pulls the student away. The self-pair is masked on the student's side only.
- The loss is ``|f(x) - stopgrad(f(x) + V)|^2``: its value says little (every force is scaled to unit size), its
  gradient is the field.
- Features: cells of the teacher's encoder maps, pooled to grids of several sizes; every cell is a space of its own.
  Or tokens inside the teacher's transformer (drifting with a teacher's features, arXiv 2605.07327): for real teachers,
  whose encoder knows textures and little of what a picture shows. With ``space: latents`` they are those of the latents
  that the core guesses: neither head nor encoder runs.
- Positives are the batch's teacher pictures and no queue: a queue is state, and a step must be a function of its number.

Legend: L feature spaces, B batch, N positives, M negatives, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from l2p.config import (
    CellSides,
    FeatureScale,
    Positive,
    PositiveFraction,
    Text,
    Weight,
)
from l2p.errors import UserError
from l2p.features import FeatureSpec, Probe, load_features, shrink, shrink_factor
from l2p.objectives.base import FULL_BATCH, BatchShard, Objective, StepContext
from l2p.objectives.latents import check_latents

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import Recipe, StageConfig
    from l2p.teachers import Teacher

_TINY = 1e-8


class DriftObjective(Objective):
    """Drifting in the features of the teacher.

    Args:
        temperatures: kernel widths, as shares of the mean distance; small ones pair neighbours, large ones move the crowd.
        grids: each encoder map is averaged to these grids (1: the whole picture); mean and deviation of each cell count.
        features: a feature network (:mod:`l2p.features`): "encoder[@BLOCKS]" (the teacher's VAE), "transformer[@BLOCKS]",
            "timm:NAME[@LAYERS]".
        feature_scale: of pictures, as in ``pairs``.
        teacher_time: how much the transformer's latents are noised; small times show detail, large ones layout.
        space: "pixels" compares the student's pictures, "latents" what its core guesses, in the transformer's features.
    """

    name = "drift"

    def __init__(
        self,
        *,
        teacher: Teacher,
        lift: Lift,
        weight: Weight = 1.0,
        temperatures: Annotated[list[Positive], Field(min_length=1, max_length=64)] = (0.02, 0.05, 0.2),
        grids: CellSides = (1, 2, 4),
        features: Text = "encoder",
        feature_scale: FeatureScale = 1.0,
        teacher_time: PositiveFraction = 0.2,
        space: Literal["pixels", "latents"] = "pixels",
    ) -> None:
        super().__init__(weight)
        self.temperatures, self.grids = tuple(temperatures), tuple(grids)
        self.teacher_time = teacher_time
        self.shrink = shrink_factor(feature_scale)
        self.space, self._features = space, None
        if self.weight:
            self._features = load_features(features, teacher)

    @classmethod
    def networks_named(cls, knobs: Mapping[str, Any]) -> list[FeatureSpec]:
        return [FeatureSpec.parse(knobs["features"])] if knobs["weight"] else []

    @classmethod
    def check(cls, knobs: Mapping[str, Any], recipe: Recipe, stage: StageConfig) -> None:
        if stage.batch_size < 2:
            raise UserError(f"objectives.drift needs a batch_size of at least 2, got {stage.batch_size}")
        if stage.accumulate > 1:
            raise UserError("objectives.drift compares the pictures of a whole batch: set accumulate to 1")
        kind = FeatureSpec.parse(knobs["features"]).kind
        if kind == "transformer" and knobs["feature_scale"] != 1:
            raise UserError(
                "objectives.drift.feature_scale is of pictures: leave it at 1 with features: transformer"
            )
        if knobs["space"] == "latents":
            check_latents("objectives.drift.space=latents", recipe)
            if kind != "transformer":
                raise UserError(
                    f"objectives.drift.space=latents has no picture for {kind}: set features: transformer"
                )

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        x = ctx.answer(self.space)
        if len(x) * ctx.share.count < 2:
            raise UserError("the drift objective needs a batch of at least 2 pictures: they push each other")
        found, wanted = self._compare(ctx, x)
        losses = []
        with torch.autocast(
            x.device.type, enabled=False
        ):  # bf16 would round small differences of distances away
            for f, g in zip(found, wanted, strict=True):
                spaces = zip(pool_cells(f, self.grids), pool_cells(g, self.grids), strict=True)
                losses += [
                    drift_loss(
                        cells,
                        ctx.all_gather(targets, 1),
                        self.temperatures,
                        ctx.all_gather(cells, 1),
                        ctx.share,
                    )
                    for cells, targets in spaces
                ]
        return {"drift": torch.stack(losses).mean()}

    def _compare(self, ctx: StepContext, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Feature maps [B, C, h, w] of the student's answers, and of the teacher's, without gradient."""
        if not self._features.needs_probe:
            with torch.no_grad():
                wanted = self._features.maps(shrink(ctx.batch.images, self.shrink))
            return self._features.maps(shrink(x, self.shrink)), wanted
        eps = ctx.randn(*ctx.batch.latents.shape)  # one noise for both sides: it must not tell them apart
        t = torch.full((len(x),), self.teacher_time, device=x.device)
        probe = Probe(ctx.batch.conditioning, t, eps)
        latents = self.space == "latents"
        see = self._features.of_latents if latents else self._features.maps
        with torch.no_grad():
            wanted = see(ctx.batch.latents if latents else ctx.batch.images, probe)
        return see(x, probe), wanted


def pool_cells(features: Tensor, grids: tuple[int, ...]) -> list[Tensor]:
    """Mean and deviation of a map [B, C, h, w] in the cells of each grid: two [cells, B, C] a grid, in float32."""
    features, spaces = features.float(), []
    for grid in grids:
        size = [-(-side // grid) for side in features.shape[2:]]
        mean, square = (
            F.avg_pool2d(value, size, ceil_mode=True, count_include_pad=False)
            for value in (features, features.square())
        )
        deviation = ((square - mean.square()).clamp(min=0) + 1e-6).sqrt()  # a flat cell keeps a finite slope
        spaces += [cells.flatten(2).permute(2, 0, 1) for cells in (mean, deviation)]
    return spaces


def drift_loss(
    x: Tensor,
    positives: Tensor,
    temperatures: tuple[float, ...],
    everyone: Tensor | None = None,
    share: BatchShard = FULL_BATCH,
) -> Tensor:
    """Drifting loss of samples x [L, B, C], each other's negatives, towards positives [L, N, C]; the mean over L.

    Distances are measured in units of their mean, and each temperature's force is scaled to unit RMS.

    Args:
        everyone: all samples of the step where x is but a share of them; x itself if None.
    """
    x, positives = x.float(), positives.detach().float()
    with torch.no_grad():
        crowd = x if everyone is None else everyone.float()
        scale = _mean_distance(crowd, positives) / x.shape[-1] ** 0.5  # so that a distance is about sqrt(C)
        y, here = positives / scale, crowd / scale
        force = torch.zeros_like(here)
        for temperature in temperatures:
            field = drift_field(here, y, here, temperature * x.shape[-1] ** 0.5, self_pairs=True)
            force += field / field.square().mean((1, 2), keepdim=True).sqrt().clamp(min=_TINY)
        target = (here + force)[:, share.of(crowd.shape[1])]
    return (x / scale - target).square().mean()


def drift_field(
    x: Tensor, positives: Tensor, negatives: Tensor, tau: float, self_pairs: bool = False
) -> Tensor:
    """The force V [L, B, C] on points x [L, B, C] from positives [L, N, C] and negatives [L, M, C].

    Args:
        tau: width of the kernel ``exp(-|x - y| / tau)``, in the units of x.
        self_pairs: the negatives are x itself, and a point does not push itself.
    """
    distance = torch.cdist(x, torch.cat([positives, negatives], dim=1))  # [L, B, N + M]
    n = positives.shape[1]
    if self_pairs:
        distance = distance + F.pad(torch.eye(x.shape[1], device=x.device, dtype=x.dtype) * 1e6, (n, 0))
    logits = -distance / tau
    kernel = (logits.softmax(2) * logits.softmax(1)).sqrt()
    draw, push = kernel[..., :n], kernel[..., n:]
    draw, push = draw * push.sum(2, keepdim=True), push * draw.sum(2, keepdim=True)
    return draw @ positives - push @ negatives


def _mean_distance(x: Tensor, positives: Tensor) -> Tensor:
    """Mean distance [L, 1, 1] of x to the positives and to the other x."""
    b, n = x.shape[1], positives.shape[1]
    total = torch.cdist(x, positives).sum((1, 2)) + torch.cdist(x, x).sum((1, 2))
    return (total / (b * n + b * (b - 1))).clamp(min=_TINY)[:, None, None]
