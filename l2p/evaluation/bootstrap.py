"""How far a figure would scatter if other pictures of the same kind had been drawn: the bootstrap.

Pictures are drawn anew from the set, with repetition, and the figure is computed on each such set (scipy). A distance
between distributions grows when pictures repeat, so its bootstrap values all lie too high; their mean is therefore moved
onto the figure, and the interval tells the scatter alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    count: int,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """Interval of a figure of ``count`` pictures.

    Args:
        statistic: picture numbers (int64 [count], some repeated, some missing) to the figure of those pictures; NaN
            for sets that have none (of three pictures, three times the same one), which are left out.
        count: pictures in the set, at least 2.
        resamples: sets drawn; 200 fix the ends of a 95 % interval to about a tenth of its width.

    Raises:
        ValueError: fewer than 2 pictures, or a confidence outside (0, 1).
    """
    import warnings

    from scipy.stats import DegenerateDataWarning, bootstrap

    if count < 2:
        raise ValueError(f"a bootstrap needs at least 2 pictures, got {count}")
    if not 0 < confidence < 1:
        raise ValueError(f"{confidence=} must lie between 0 and 1")
    numbers = np.arange(count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of scipy's own interval, which is not used
        values = bootstrap(
            (numbers,),
            lambda chosen: float(statistic(chosen)),
            n_resamples=resamples,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    values = values[np.isfinite(values)]
    shift = float(statistic(numbers)) - values.mean()
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]) + shift
    return Interval(float(low), float(high))


def wilson_interval(hits: float, count: float, z: float = 1.959964) -> Interval:
    """Wilson's score interval (1927) of a share ``hits / count``, 95 % by default; (0, 1) where nothing was counted."""
    if count <= 0:
        return Interval(0.0, 1.0)
    share = hits / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return Interval(max(0.0, middle - half), min(1.0, middle + half))
