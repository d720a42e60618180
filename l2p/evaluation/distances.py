"""Distances between sets of pictures with their uncertainty: Frechet, kernel, precision and recall."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from l2p.evaluation.bootstrap import bootstrap_interval
from l2p.evaluation.frechet import gaussian_distance, symmetric_root
from l2p.evaluation.kid import kernel_distance, kernel_interval
from l2p.evaluation.precision_and_recall import precision_recall

KEPT = 4096  # features kept of a set (2 MB): more sharpen no figure here
K = 3  # neighbours of precision and recall
RESAMPLES = 100


def distances(
    features: Tensor, mean: Tensor, covariance: Tensor, real: Tensor | None = None
) -> dict[str, Any]:
    """JSON values of features [N, d] against a reference's mean [d] and covariance [d, d].

    Args:
        real: features [M, d] of real pictures, for what needs more than two moments; None where the set is that itself.
    """
    values: dict[str, Any] = {}
    features, mean, covariance = features.double(), mean.double().cpu(), covariance.double().cpu()
    if len(features) > 1:
        root = symmetric_root(covariance)

        def frechet(chosen) -> float:
            some = features[torch.from_numpy(chosen)]
            return gaussian_distance(mean, covariance, some.mean(0), torch.cov(some.T), root)

        interval = bootstrap_interval(frechet, len(features), resamples=RESAMPLES)
        values["frechet_interval"] = [max(0.0, interval.low), interval.high]
    if real is not None and min(len(features), len(real)) > 1:
        values["kernel"] = kernel_distance(features, real)
        values["kernel_interval"] = list(kernel_interval(features, real, RESAMPLES))
    if real is not None and min(len(features), len(real)) > K:
        values["precision"], values["recall"] = precision_recall(features, real, K)
    return values
