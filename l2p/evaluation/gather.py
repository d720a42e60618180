"""All figures of one painter's pictures, gathered batch by batch: the basic ones, the traces, the pairs, the cycle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from l2p.evaluation.cycle import latent_cycle_error
from l2p.evaluation.figures import Figures
from l2p.evaluation.frechet import FeatureStatistics, frechet_distance
from l2p.evaluation.judge import Judge
from l2p.evaluation.native import SIZE, native_crops
from l2p.evaluation.pairs import Pairs
from l2p.evaluation.traces import Traces

# whose pictures a painter should repeat; all others repeat the teacher's
REPEATS = {"real": None, "teacher": None, "vae": "real"}


class Gathered:
    """What is measured on one painter's pictures.

    Args:
        name: of the painter, which decides what its pictures should repeat.
        limit: pictures that the costly figures look at; None for all.
    """

    def __init__(self, name: str, judge: Judge | None, periods: tuple[int, ...], limit: int | None) -> None:
        self.name, self.judge, self.limit = name, judge, limit
        self.figures = Figures(judge, periods)
        self.traces = Traces(periods[0], limit)
        self.pairs = Pairs(limit)
        self.crops = FeatureStatistics()
        self.cycle: list[Tensor] = []
        self.seen = 0

    @property
    def cycled(self) -> int:
        """Pictures whose latents were compared."""
        return sum(map(len, self.cycle))

    def update(
        self,
        images: dict[str, Tensor],
        labels: Tensor | None,
        latents: Tensor | None,
        encode: Callable[[Tensor], Tensor],
    ) -> None:
        """Add the next pictures.

        Args:
            images: name to [B, 3, H, W] in [-1, 1], of this painter and of the one it should repeat.
            labels: int64 [B, attributes], see Figures.
            latents: z [B, c, h, w] of the teacher's pictures; None to leave the cycle out.
        """
        own = images[self.name]
        repeats = REPEATS.get(self.name, "teacher")
        reference = images.get(repeats) if repeats else None
        self.figures.update(own, labels, reference)
        self.traces.update(own)
        if reference is not None:
            self.pairs.update(own, reference)
        if latents is not None and self.name not in ("real", "vae"):
            self.cycle.append(latent_cycle_error(own, latents, encode).cpu())
        if self.judge is not None and min(own.shape[2:]) > 4 * SIZE:
            self.crops.update(self.judge.features(native_crops(own, first=self.seen)))
        self.seen += len(own)

    def report(self, clean: Gathered, real: Gathered | None, teacher: Gathered | None) -> dict[str, Any]:
        """JSON values.

        Args:
            clean: pictures that seams and detail are compared with.
            real: real renders, for distances between distributions; None outside of landscapes.
            teacher: the teacher's pictures; None where they were not drawn.
        """
        values = self.figures.report(clean.figures)
        values |= self.figures.distances(real.figures if real else None)
        values |= self.traces.report(clean.traces)
        repeats = REPEATS.get(self.name, "teacher")
        if repeats == "real":
            values["psnr_to_real"] = self.figures.mean_psnr
        elif repeats == "teacher" and teacher is not None:
            # the same noise makes the same layout: this ratio scatters less than the one to other pictures
            first = self.figures.periods[0]
            values["seam_ratio_to_teacher"] = self.figures.seam_ratio_to(teacher.figures, first)
            values["frechet_to_teacher"] = self.figures.frechet_to(teacher.figures)
            values["psnr_to_teacher"] = self.figures.mean_psnr
        if repeats and self.pairs.values:
            values |= self.pairs.report(repeats)
        if self.cycle:
            values["latent_cycle_error"] = float(torch.cat(self.cycle).mean())
        if real is not None and real is not self and self.crops.count > 1:
            values["patch_frechet"] = frechet_distance(self.crops, real.crops)
        return values
