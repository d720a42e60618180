"""All figures of one method's pictures, gathered batch by batch: the basic ones, the traces, the pairs, the cycle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from l2p.evaluation.clip import Clip, ClipFigures
from l2p.evaluation.cycle import latent_cycle_error
from l2p.evaluation.figures import Figures
from l2p.evaluation.frechet import FeatureStatistics, frechet_distance, relative_frechet
from l2p.evaluation.judge import Judge
from l2p.evaluation.native import SIZE, native_crops
from l2p.evaluation.no_reference import Traces
from l2p.evaluation.pairs import Pairs
from l2p.evaluation.spaces import Spaces
from l2p.features import FeatureNetwork


class Gathered:
    """What is measured on one method's pictures.

    Args:
        name: of the method.
        limit: pictures that the costly figures look at; None for all.
        repeats: the method whose pictures these should be, one by one; None for nobody's.
        clip: None leaves its figures out.
        encoder: pictures to vectors [B, d] of the teacher's encoder, a second space beside the judge's; None leaves it out.
        spaces: feature networks for distances to the reference.
    """

    def __init__(
        self,
        name: str,
        judge: Judge | None,
        periods: tuple[int, ...],
        limit: int | None,
        repeats: str | None,
        clip: Clip | None = None,
        encoder: Callable[[Tensor], Tensor] | None = None,
        spaces: Sequence[FeatureNetwork] = (),
    ) -> None:
        self.name, self.judge, self.repeats = name, judge, repeats
        self.figures = Figures(judge, periods)
        self.traces = Traces(periods[0], limit)
        self.pairs = Pairs(limit)
        self.crops = FeatureStatistics()
        self.encoder, self.encoded = encoder, FeatureStatistics()
        self.spaces = Spaces(spaces)
        self.clip = ClipFigures(clip, limit) if clip else None
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
        encode: Callable[[Tensor], Tensor] | None,
        texts: Sequence[str] | None = None,
    ) -> None:
        """Add the next pictures.

        Args:
            images: name to [B, 3, H, W] in [-1, 1], of this method and, where they have partners, of the one it should repeat.
            labels: int64 [B, attributes], see Figures.
            latents: z [B, c, h, w] of the teacher's pictures; None to leave the cycle out.
            texts: the prompts, for CLIP; None leaves its score out.
        """
        own = images[self.name]
        reference = images.get(self.repeats) if self.repeats else None
        self.figures.update(own, labels, reference)
        self.traces.update(own)
        if reference is not None:
            self.pairs.update(own, reference)
        if latents is not None and encode is not None:
            self.cycle.append(latent_cycle_error(own, latents, encode).cpu())
        if self.judge is not None and min(own.shape[2:]) > 4 * SIZE:
            self.crops.update(self.judge.features(native_crops(own, first=self.seen)))
        if self.encoder is not None:
            self.encoded.update(self.encoder(own))
        self.spaces.update(own)
        if self.clip is not None:
            self.clip.update(own, texts)
        self.seen += len(own)

    def report(self, clean: Gathered, real: Gathered | None, reference: Gathered | None) -> dict[str, Any]:
        """JSON values.

        Args:
            clean: pictures that seams and detail are compared with.
            real: real renders, for distances between distributions; None outside of landscapes. Distances in feature spaces
                are to these, or else to the clean pictures.
            reference: the method whose pictures these repeat; None where they repeat nobody's.
        """
        values = self.figures.report(clean.figures)
        if real is not None:
            values |= self.figures.distances(real.figures)
        values |= self.traces.report(clean.traces)
        if self.clip is not None:
            values |= self.clip.report(clean.clip)
        target = clean if real is None else real
        if target is not self:
            values |= self.spaces.report(target.spaces)
        if self.repeats and reference is not None:
            # the same noise makes the same layout: this ratio scatters less than the one to other pictures
            first = self.figures.periods[0]
            values[f"seam_ratio_to_{self.repeats}"] = self.figures.seam_ratio_to(reference.figures, first)
            values[f"frechet_to_{self.repeats}"] = self.figures.frechet_to(reference.figures)
            values[f"psnr_to_{self.repeats}"] = self.figures.mean_psnr
            values |= self.pairs.report(self.repeats)
        if self.cycle:
            values["latent_cycle_error"] = float(torch.cat(self.cycle).mean())
        if real is not None and real is not self and self.encoded.count > 1:
            values["frechet_encoder"] = relative_frechet(self.encoded, real.encoded)
        if real is not None and real is not self and self.crops.count > 1:
            values["patch_frechet"] = frechet_distance(self.crops, real.crops)
        return values
