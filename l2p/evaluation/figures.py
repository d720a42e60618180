"""The figures of one set of pictures, gathered batch by batch; memory does not grow with their number."""

from __future__ import annotations

import torch
from torch import Tensor

from l2p.evaluation.attributes import AttributeScore
from l2p.evaluation.bootstrap import wilson_interval
from l2p.evaluation.detail import detail_energy
from l2p.evaluation.distances import KEPT, distances
from l2p.evaluation.frechet import FeatureStatistics, frechet_distance, gaussian_distance
from l2p.evaluation.judge import Judge
from l2p.evaluation.psnr_ssim import psnr
from l2p.evaluation.seams import seam_index, seam_ratio
from l2p.landscapes import ATTRIBUTES


class Figures:
    """What is measured on one set of pictures.

    Args:
        judge: None where the world is not landscapes: then only what needs no judge is measured.
        periods: pixel distances of the borders on which seams are sought, the student's patch first.
    """

    def __init__(self, judge: Judge | None, periods: tuple[int, ...]) -> None:
        self.judge, self.periods = judge, periods
        self.features, self.score = FeatureStatistics(), AttributeScore()
        self.seams: dict[int, list[Tensor]] = {period: [] for period in periods}
        self.vectors: list[Tensor] = []
        self.psnr: list[Tensor] = []
        self.energies: list[Tensor] = []

    def update(self, images: Tensor, labels: Tensor | None = None, reference: Tensor | None = None) -> None:
        """Add pictures.

        Args:
            images: [B, 3, H, W] in [-1, 1], as delivered (8-bit levels).
            labels: int64 [B, attributes], what the prompts name, -1 elsewhere.
            reference: pictures that these should repeat, for the PSNR.
        """
        if self.judge is not None:
            features, predictions = self.judge.judge(images)
            self.features.update(features)
            kept = sum(map(len, self.vectors))
            self.vectors.append(features[: KEPT - kept].cpu())
            if labels is not None:
                self.score.update(predictions.cpu(), labels)
        self.energies.append(detail_energy(images).cpu())
        for period in self.periods:
            self.seams[period].append(seam_index(images, period).cpu())
        if reference is not None:
            self.psnr.append(psnr(images, reference).cpu())

    @property
    def frechet_to_real(self) -> float | None:
        """Distance to the judge's reference of real renders."""
        if self.judge is None:
            return None
        mean, covariance = self.judge.reference_mean, self.judge.reference_covariance
        mean, covariance = mean.double().cpu(), covariance.double().cpu()
        return gaussian_distance(self.features.mean, self.features.covariance, mean, covariance)

    def frechet_to(self, other: Figures) -> float | None:
        return None if self.judge is None else frechet_distance(self.features, other.features)

    def distances(self, real: Figures) -> dict:
        """JSON values: intervals, kernel distance, precision and recall; ``real`` is the set of real renders."""
        if self.judge is None:
            return {}
        other = None if real is self else torch.cat(real.vectors)
        mean, covariance = self.judge.reference_mean, self.judge.reference_covariance
        vectors = torch.cat(self.vectors)
        values = distances(vectors, mean, covariance, other)
        if (
            len(vectors) < self.features.count
        ):  # intervals, kernel distance, precision and recall are of so many
            values["distance_images"] = len(vectors)
        return values

    def seam_ratio_to(self, other: Figures, period: int) -> float:
        return seam_ratio(torch.cat(self.seams[period]), torch.cat(other.seams[period]))

    @property
    def detail(self) -> float:
        """Mean energy of the finest structure."""
        return float(torch.cat(self.energies).mean())

    def report(self, clean: Figures) -> dict:
        """JSON values; ``clean`` is the set of clean pictures that seams and detail are compared with."""
        first = self.periods[0]
        values: dict = {
            "attribute_accuracy": self.score.accuracy if self.judge is not None else None,
            "frechet": self.frechet_to_real,
            "detail_ratio": self.detail / max(clean.detail, 1e-12),
            "seam_index": float(torch.cat(self.seams[first]).mean()),
            "seam_ratio": self.seam_ratio_to(clean, first),
            "seam_ratio_by_period": {
                str(period): self.seam_ratio_to(clean, period) for period in self.periods
            },
        }
        if self.judge is not None:
            values["attribute_accuracy_by_attribute"] = self.score.by_attribute
            values["attributes_asked"] = dict(zip(ATTRIBUTES, self.score.asked.tolist(), strict=True))
            hits, asked = int(self.score.hits.sum()), int(self.score.asked.sum())
            values["attribute_accuracy_interval"] = list(wilson_interval(hits, asked))
        return values

    @property
    def mean_psnr(self) -> float:
        return float(torch.cat(self.psnr).mean())
