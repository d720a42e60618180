"""Seams at a period that nobody named: every comb of lines is tried, and the one that stands out is told.

``seam_index`` asks about one period and is swayed by where a picture's objects stand. Here each step between two lines
of pixels is first divided by its neighbours' (so that strong edges and flat skies count alike), which in a picture
without a grid leaves every line near 1. A grid raises the lines of one comb, ``offset + k period``. The score is how many
standard errors they stand above the others; as some thousand combs are tried, a score below ``MIN_SCORE`` is chance.

Real photographs that were stored as JPEG carry a true grid of 8 pixels: strengths of 1.05 to 1.4 were measured on
scikit-image's. Hence ``ALARM`` at JPEG's own periods. At others a grid is told from 1.15 on where it is beyond doubt
(``SURE_SCORE``): steps between patches are drowned by leaves and grass, but they stand in line.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MIN_SCORE = 6.0
ALARM = 1.5
SURE_SCORE = 10.0  # no clean set or photograph has more, but at JPEG's periods
FAINT_ALARM = 1.15
JPEG = (4, 8)  # pixels: its blocks, and half of them
_FLOOR = 1e-3  # an eighth of an 8-bit level: even areas count as 1, whatever their rounding


class Seams(NamedTuple):
    """The comb that stands out most.

    Attributes:
        period: pixels between its lines.
        offset: of the first line from the top or left, pixels.
        axis: "rows" (lines run across) or "columns".
        strength: mean relative step on its lines over that of all others, 1 for none.
        score: standard errors by which it stands out.
    """

    period: int
    offset: int
    axis: str
    strength: float
    score: float

    @property
    def alarming(self) -> bool:
        """Too strong to be chance or a good JPEG."""
        return self.score >= MIN_SCORE and self.strength >= self.limit

    @property
    def limit(self) -> float:
        """Strength from which it alarms."""
        return FAINT_ALARM if self.score >= SURE_SCORE and self.period not in JPEG else ALARM


class SeamSearch:
    """Looks for seams in pictures of one size that arrive in batches; memory does not grow with their number."""

    def __init__(self, low: int = 4, high: int = 64) -> None:
        if not 2 <= low <= high:
            raise ValueError(f"periods must satisfy 2 <= low <= high, got {low=} and {high=}")
        self.low, self.high = low, high
        self._profiles: dict[str, Tensor] = {}
        self._count = 0

    def update(self, images: Tensor) -> None:
        """Add pictures [B, C, H, W] in [-1, 1]; raises ValueError if their size is another than before."""
        if images.ndim != 4 or min(images.shape[2:]) < 5:
            raise ValueError(f"images must be [B, C, H, W] of at least 5 x 5, got {list(images.shape)}")
        for axis, lines in (("rows", images.transpose(2, 3)), ("columns", images)):
            steps = lines.double().diff(dim=3).abs().mean(1)  # [B, lines across, steps along]
            own = steps[..., 1:-1]
            share = 3 * (own + _FLOOR) / (steps[..., :-2] + own + steps[..., 2:] + 3 * _FLOOR)
            profile = share.mean(1).sum(0).cpu()
            if axis in self._profiles and self._profiles[axis].shape != profile.shape:
                raise ValueError(f"pictures of another size than before: {list(images.shape[2:])}")
            self._profiles[axis] = self._profiles.get(axis, 0) + profile
        self._count += len(images)

    def strength(self, period: int, offset: int, axis: str) -> float:
        """Strength of one comb, 1 for none; raises ValueError before the first picture or where it has no line."""
        profile = self._profile(axis)
        on = _offsets(profile, period) == offset
        if not on.any():
            raise ValueError(f"the pictures are too small for a line {offset} px from their edge")
        return float(profile[on].mean() / profile[~on].mean())

    def _profile(self, axis: str) -> Tensor:
        if not self._count:
            raise ValueError("no pictures yet: call update first")
        return self._profiles[axis] / self._count

    def result(self) -> Seams:
        """The most striking comb; raises ValueError before the first picture or where no period fits three times."""
        found = [
            seams
            for axis in ("rows", "columns")
            for period in range(self.low, self.high + 1)
            if (seams := _best_offset(self._profile(axis), period, axis)) is not None
        ]
        if not found:
            raise ValueError(f"the pictures are too small for three periods of {self.low} px")
        return max(found, key=lambda seams: seams.score)


def find_seams(images: Tensor, low: int = 4, high: int = 64) -> Seams:
    """The strongest comb of lines in a set of pictures [B, C, H, W] in [-1, 1], of ``low`` to ``high`` pixels' period."""
    search = SeamSearch(low, high)
    search.update(images)
    return search.result()


def _offsets(profile: Tensor, period: int) -> Tensor:
    """The comb of a period that each line belongs to."""
    # entry i is the step from pixel i + 1 to pixel i + 2: the border stands before pixel i + 2
    return (torch.arange(len(profile)) + 2) % period


def _best_offset(profile: Tensor, period: int, axis: str) -> Seams | None:
    """The offset whose lines stand out most."""
    size = len(profile)
    if size < 3 * period:
        return None
    offset = _offsets(profile, period)
    ones = torch.ones_like(profile)
    count = torch.zeros(period, dtype=torch.float64).index_add_(0, offset, ones)
    on = torch.zeros(period, dtype=torch.float64).index_add_(0, offset, profile)
    squares = torch.zeros(period, dtype=torch.float64).index_add_(0, offset, profile.square())
    rest = size - count
    mean_on, mean_off = on / count, (profile.sum() - on) / rest
    variance = ((profile.square().sum() - squares) / rest - mean_off.square()).clamp_min(0)
    score = (mean_on - mean_off) / ((variance + 1e-8) / count).sqrt()
    best = int(score.argmax())
    return Seams(period, best, axis, float(mean_on[best] / mean_off[best]), float(score[best]))
