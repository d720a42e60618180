"""What a set of pictures betrays of its making, without any reference: seams, marks, repetition, spectrum.

Gathered batch by batch; memory does not grow with the number of pictures. The costly ones look at the first pictures only
where a limit is set.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from l2p.evaluation.patch_artifacts import grid_share
from l2p.evaluation.repetition import ALARM, repeated_share
from l2p.evaluation.seam_search import SeamSearch
from l2p.evaluation.spectrum import energy_above, power_of, rings

BINS = 32  # rings of the spectrum
REPETITION_LIMIT = (
    128  # pictures searched for copies, at some 20 ms each; a third of the limit where one is set
)


class Traces:
    """Gathers the figures of one set of pictures of one size.

    Args:
        patch_size: pixels a side of the student's patch, in which marks are sought.
        limit: pictures that the costly figures look at; None for all.
    """

    def __init__(self, patch_size: int, limit: int | None = None) -> None:
        self.patch_size, self.limit = patch_size, limit
        self.seams = SeamSearch()
        self.marks: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.fine: list[Tensor] = []
        self.frequencies: Tensor | None = None
        self.power: Tensor | None = None
        self.count = 0

    def update(self, images: Tensor) -> None:
        """Add pictures [B, 3, H, W] in [-1, 1]."""
        self.seams.update(images)
        room = len(images) if self.limit is None else max(0, self.limit - self.count)
        looked_at = images[:room]
        if len(looked_at) == 0:
            return
        self.count += len(looked_at)
        if min(images.shape[2:]) >= 4 * self.patch_size:
            self.marks.append(grid_share(looked_at, self.patch_size).cpu())
        searched = sum(map(len, self.shares))
        most = REPETITION_LIMIT if self.limit is None else max(1, self.limit // 3)
        if min(images.shape[2:]) >= 32 and searched < most:
            self.shares.append(repeated_share(looked_at[: most - searched]).cpu())
        spectrum = power_of(looked_at)
        self.fine.append(energy_above(*spectrum).cpu())
        self.frequencies, power = rings(*spectrum, min(BINS, min(images.shape[2:]) // 4))
        self.power = power.sum(0).cpu() + (0 if self.power is None else self.power)

    def report(self, clean: Traces) -> dict[str, Any]:
        """JSON values; ``clean`` is the set whose fine structure counts as 1."""
        seams = self.seams.result()
        values: dict[str, Any] = {
            "seams": {
                **seams._asdict(),
                "limit": seams.limit,
                "alarming": seams.alarming,
                "strength_in_reference": clean.seams.strength(seams.period, seams.offset, seams.axis),
            },
            "high_frequency_ratio": _mean(self.fine) / max(_mean(clean.fine), 1e-12),
            "spectrum": {
                "frequencies": [round(f, 5) for f in self.frequencies.tolist()],
                "power": [float(f"{p:.4g}") for p in (self.power / self.count).nan_to_num().tolist()],
            },
        }
        if self.marks:
            values["grid_share"] = _mean(self.marks)
        if self.shares:
            values["repeated_share"] = _mean(self.shares)
            values["repeated_pictures"] = float((torch.cat(self.shares) > ALARM).double().mean())
        return values


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).mean())
