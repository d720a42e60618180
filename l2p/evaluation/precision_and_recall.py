"""Precision and recall of a set of pictures: are they like real ones, and are all real ones among them?

Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991): around each feature of a set lies a ball that
reaches its k-th neighbour in that set, and the balls together are the set's manifold. Precision is the share of drawn
pictures inside the real manifold, recall the share of real pictures inside the drawn one. Both grow with the number of
pictures and fall with the number of features, so they are only to be compared within one report.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1024  # features whose distances are held at once


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]; 1 is best."""

    precision: float
    recall: float


def precision_recall(drawn: Tensor, real: Tensor, k: int = 3) -> PrecisionRecall:
    """Precision and recall of features drawn [N, d] against real [M, d]; N and M above k.

    Raises:
        ValueError: other shapes, or too few features.
    """
    if drawn.ndim != 2 or real.ndim != 2 or drawn.shape[1] != real.shape[1]:
        raise ValueError(
            f"features [N, d] and [M, d] expected, got {list(drawn.shape)} and {list(real.shape)}"
        )
    if min(len(drawn), len(real)) <= k:
        raise ValueError(f"{k=} neighbours need more than {k} features, got {len(drawn)} and {len(real)}")
    drawn, real = drawn.double(), real.double()
    return PrecisionRecall(_inside(drawn, real, k), _inside(real, drawn, k))


def _inside(points: Tensor, centres: Tensor, k: int) -> float:
    """Share of the points that lie in the ball of any centre."""
    # the nearest centre of a centre is itself, hence k + 1
    radii = torch.cat([_distances(part, centres).kthvalue(k + 1).values for part in centres.split(CHUNK)])
    inside = [(_distances(part, centres) <= radii).any(1) for part in points.split(CHUNK)]
    return float(torch.cat(inside).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(
        a, b, compute_mode="donot_use_mm_for_euclid_dist"
    )  # the quick way loses small distances
