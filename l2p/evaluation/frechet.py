"""Frechet distance between two sets of feature vectors, each summarised as a Gaussian.

On the features of the bundled judge this is a "Frechet distance on the judge's features"; it is no FID, whose
network, picture size and reference sets are others. It is biased upwards for small sets, so a floor (fresh real
renders against the reference) belongs beside every figure.
"""

from __future__ import annotations

import torch
from torch import Tensor


class FeatureStatistics:
    """Mean and covariance in float64 of features [B, d] that arrive in batches; memory does not grow with their number."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None  # sum of (f - mean)(f - mean)^T

    def update(self, features: Tensor) -> None:
        """Add features [B, d]; the pairwise formula of Chan et al. keeps the sums exact to rounding."""
        batch = features.detach().to("cpu", torch.float64)
        if batch.ndim != 2:
            raise ValueError(f"features must be [B, d], got {list(batch.shape)}")
        if len(batch) == 0:
            return
        mean = batch.mean(0)
        scatter = (batch - mean).T @ (batch - mean)
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = len(batch), mean, scatter
            return
        total = self.count + len(batch)
        gap = mean - self._mean
        self._scatter += scatter + torch.outer(gap, gap) * (self.count * len(batch) / total)
        self._mean += gap * (len(batch) / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """[d]; raises ValueError before the first feature."""
        if self._mean is None:
            raise ValueError("no features yet: call update first")
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """[d, d], unbiased; raises ValueError for fewer than two features."""
        if self._scatter is None or self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet distance ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` of the two Gaussians, at least 0."""
    return gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)


def relative_frechet(a: FeatureStatistics, real: FeatureStatistics) -> float:
    """:func:`frechet_distance` with every feature in units of its deviation among the real ones, over their number.

    So features of any scale count alike, and a set that leaves the real ones by a whole deviation everywhere is at 1.
    """
    unit = real.covariance.diagonal().clamp(min=1e-12).sqrt()
    across = torch.outer(unit, unit)
    distance = gaussian_distance(
        a.mean / unit, a.covariance / across, real.mean / unit, real.covariance / across
    )
    return distance / len(unit)


def gaussian_distance(
    mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor, root_a: Tensor | None = None
) -> float:
    """The same for means [d] and covariances [d, d] (float64).

    Args:
        root_a: ``symmetric_root(cov_a)``, where it is at hand because many are compared with a.
    """
    # S_a S_b has the eigenvalues of the symmetric S_a^(1/2) S_b S_a^(1/2), which eigvalsh finds without complex dust
    root = symmetric_root(cov_a) if root_a is None else root_a
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))


def symmetric_root(covariance: Tensor) -> Tensor:
    """The symmetric square root [d, d] of a covariance; what rounding made negative counts as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
