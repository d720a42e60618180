"""``pairs``: the student's one step from the noise eps against the picture that the teacher drew from the same noise.

The robust default of distillation: with exactly coupled noise the target is a function of the input, and plain
regression does not blur.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from l2p.config import FeatureScale, PerceptualTerms, PositiveFraction, Weight
from l2p.errors import UserError
from l2p.features import FeatureSpec, PerceptualDistance, networks_of, shrink, shrink_factor
from l2p.objectives.base import Objective, StepContext
from l2p.objectives.latents import check_latents
from l2p.patches import patchify

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import Recipe, StageConfig
    from l2p.teachers import Teacher


class PairsObjective(Objective):
    """Pixel, latent and perceptual terms; a term of weight 0 is not computed.

    Args:
        noise: "coupled" is the one the teacher's picture came from; "fresh" noise breaks the pair, for comparison: the
            student can then only learn the mean picture of a caption.
        target: "teacher" is the picture that the teacher drew; "decoder" what its VAE makes of the latents that the
            student's core guesses. The latter is a function of the core's features, so that nothing is averaged: the
            head learns to decode, sharply, and the core needs another term (``latents``) to guess right.
        pixel: weight of the Charbonnier distance ``mean(sqrt(d^2 + edge^2) - edge)``.
        squared: weight of the mean squared error of pixels, and of the differences between neighbours: stars and windows,
            small and bright, which absolute errors drop.
        gradient: weight of the Charbonnier distance of differences between neighbouring pixels: sharp edges where the
            teacher has them, and no seams where it has none.
        seam: weight of the same on the differences across the borders of latent cells alone, where a head that writes
            patch by patch leaves its grid; there are too few of them for ``gradient`` to mind.
        edge: where Charbonnier turns from squared to absolute, in units of [-1, 1].
        latent: weight of ``L1 + MSE / 2`` in the teacher's latent space.
        latent_space: "lift" projects both pictures with ``A^T`` (almost free, and zero for the teacher's own picture,
            which a comparison with the latent itself would not be: the lift explains a part of it only); "encoder"
            runs the teacher's encoder on the student's picture and compares with the kept latent, or the guessed one.
        perceptual: weight of the distance of features.
        perceptual_network: a feature network (:mod:`l2p.features`), such as "encoder" (the teacher's, no download), "lpips" or
            "timm:NAME@3,7,11"; a preset, "pmf" or "pixelgen"; or several with weights, ``{lpips: 0.4, pmf: 0.1}``. The time
            below which pMF looks at a picture is left out here: a pair's target is a function of its noise.
        perceptual_fraction: share of the batch, chosen anew each step, that the costly term sees.
        feature_scale: pictures are averaged down to this share of their side for the features; 0.5 costs a quarter.
    """

    name = "pairs"

    def __init__(
        self,
        *,
        teacher: Teacher,
        lift: Lift,
        weight: Weight = 1.0,
        noise: Literal["coupled", "fresh"] = "coupled",
        target: Literal["teacher", "decoder"] = "teacher",
        pixel: Weight = 1.0,
        squared: Weight = 0.0,
        gradient: Weight = 1.0,
        seam: Weight = 0.5,
        edge: PositiveFraction = 1e-3,
        latent: Weight = 0.5,
        latent_space: Literal["lift", "encoder"] = "lift",
        perceptual: Weight = 0.5,
        perceptual_network: PerceptualTerms = "encoder",
        perceptual_fraction: PositiveFraction = 1.0,
        feature_scale: FeatureScale = 1.0,
    ) -> None:
        super().__init__(weight)
        self.noise = noise
        self.pixel = pixel
        self.squared = squared
        self.target = target
        self.gradient = gradient
        self.seam = seam
        self.latent = latent
        self.perceptual = perceptual
        self.edge = edge
        self.perceptual_fraction = perceptual_fraction
        self.latent_space = latent_space
        self.shrink = shrink_factor(feature_scale)
        self._distance: PerceptualDistance | None = None
        if self.weight and self.perceptual:
            self._distance = PerceptualDistance(perceptual_network, teacher)

    @classmethod
    def networks_named(cls, knobs: Mapping[str, Any]) -> list[FeatureSpec]:
        return networks_of(knobs["perceptual_network"]) if knobs["weight"] and knobs["perceptual"] else []

    @classmethod
    def check(cls, knobs: Mapping[str, Any], recipe: Recipe, stage: StageConfig) -> None:
        if knobs["target"] != "decoder":
            return
        check_latents("objectives.pairs.target=decoder", recipe)
        if knobs["noise"] == "fresh":
            raise UserError(
                "objectives.pairs.target=decoder paints the latents of the pairs' own noise: "
                "leave objectives.pairs.noise at coupled"
            )

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        target = ctx.decoded if self.target == "decoder" else ctx.batch.images
        x = ctx.picture if self.noise == "coupled" else ctx.draw(ctx.randn(*target.shape))
        terms: dict[str, Tensor] = {}
        if self.pixel:
            terms["pixel"] = self.pixel * charbonnier(x, target, self.edge)
        if self.squared:
            terms["squared"] = self.squared * squared_distance(x, target)
        if self.gradient:
            terms["gradient"] = self.gradient * step_distance(x, target, self.edge)
        if self.seam:
            cell = ctx.teacher.geometry.compression
            terms["seam"] = self.seam * step_distance(x, target, self.edge, every=cell)
        if self.latent:
            terms["latent"] = self.latent * self._latent(ctx, x, target)
        if self.perceptual:
            some, factor = ctx.random_subset(self.perceptual_fraction)
            even = ctx.rand_columns(len(x), self._distance.num_random)
            # Where others have all that were chosen, the term is still there, and so is its gradient.
            distance = (
                self._compare(x[some], target[some], None if even is None else even[some])
                if factor
                else x.sum() * 0
            )
            terms["perceptual"] = self.perceptual * factor * distance
        return terms

    def _compare(self, x: Tensor, target: Tensor, even: Tensor | None) -> Tensor:
        return self._distance(shrink(x, self.shrink), shrink(target, self.shrink), even).mean()

    def _latent(self, ctx: StepContext, x: Tensor, target: Tensor) -> Tensor:
        if self.latent_space == "encoder":
            z_0 = ctx.latents.detach() if self.target == "decoder" else ctx.batch.latents
            found, wanted = ctx.teacher.encode(x).float(), z_0.float()
        else:
            with torch.autocast(
                x.device.type, enabled=False
            ):  # the projection is cheap, and bf16 would round it
                p = ctx.teacher.geometry.token_pixels
                found, wanted = (
                    ctx.lift.to_latent(patchify(picture.float(), p), 0.0) for picture in (x, target)
                )
        return F.l1_loss(found, wanted) + 0.5 * F.mse_loss(found, wanted)


def charbonnier(x: Tensor, target: Tensor, edge: PositiveFraction) -> Tensor:
    """Mean of ``sqrt(d^2 + edge^2) - edge``: smooth at 0, about ``|d|`` beyond ``edge``."""
    difference = x.float() - target.float()
    return (difference.square() + edge**2).sqrt().mean() - edge


def squared_distance(x: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of pixels [B, C, H, W], plus that of the steps from one to the next, down and across."""
    return sum(map(F.mse_loss, *((y, y.diff(dim=2), y.diff(dim=3)) for y in (x.float(), target.float()))))


def step_distance(x: Tensor, target: Tensor, edge: PositiveFraction, every: int = 1) -> Tensor:
    """:func:`charbonnier` of the steps from one pixel [B, C, H, W] to the next, down plus across.

    Args:
        every: of the steps across every nth border alone, those after pixel ``every - 1``, ``2 every - 1`` and so on.
    """
    return sum(
        charbonnier(*(y.movedim(axis, -1).diff()[..., every - 1 :: every] for y in (x, target)), edge)
        for axis in (2, 3)
    )
