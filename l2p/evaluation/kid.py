"""Kernel distance between two sets of feature vectors: squared maximum mean discrepancy, unbiased.

With the cubic kernel ``k(x, y) = (x . y / d + 1)^3`` of "Demystifying MMD GANs" (arXiv 1801.01401) this is what is known
as KID on Inception features; here the features are the bundled judge's, so it is only to be compared within one report.
Unlike the Frechet distance its mean does not depend on the number of pictures, and it assumes no Gaussian; it can be a
little below 0 where the sets do not differ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from l2p.evaluation.bootstrap import Interval, bootstrap_interval


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD of features a [N, d] and b [M, d], about 0 for sets of one distribution.

    Raises:
        ValueError: other shapes, or fewer than 2 features in a set.
    """
    return squared_mmd(a, b, _cubic)


def squared_mmd(a: Tensor, b: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Unbiased squared MMD of a [N, d] and b [M, d] with a kernel that turns two such sets into [N, M]; in float64.

    Raises:
        ValueError: other shapes, or fewer than 2 features in a set.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features [N, d] and [M, d] expected, got {list(a.shape)} and {list(b.shape)}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 features a set, got {len(a)} and {len(b)}")
    a, b = a.double(), b.double()
    return float(
        _mean_off_diagonal(kernel(a, a)) + _mean_off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean()
    )


def kernel_interval(a: Tensor, b: Tensor, resamples: int = 200, seed: int = 0) -> Interval:
    """95 % bootstrap interval of :func:`kernel_distance` over the features a, with b as it is."""
    a, b = a.double(), b.double()
    own, cross = _cubic(a, a), _cubic(a, b).mean(1)
    own.fill_diagonal_(0)  # a picture drawn twice is no pair
    reference = _mean_off_diagonal(_cubic(b, b))

    def distance(chosen: np.ndarray) -> float:
        times = torch.from_numpy(np.bincount(chosen, minlength=len(a))).double()
        pairs = times.sum() ** 2 - times.square().sum()
        if pairs == 0:
            return float("nan")
        return float(times @ own @ times / pairs + reference - 2 * (times @ cross) / times.sum())

    return bootstrap_interval(distance, len(a), resamples=resamples, seed=seed)


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_off_diagonal(k: Tensor) -> Tensor:
    return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))
