"""Does the picture show what the prompt says? Attribute accuracy by the judge.

Only the attributes that a caption names are scored: a caption that says nothing of water may be painted with or
without it. The judge's own accuracy on real renders of the same scenes, by the same rule, is the ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from l2p.landscapes import ATTRIBUTES, parse


def named_labels(captions: Sequence[str]) -> Tensor:
    """What each caption says, int64 [B, attributes]: the index of the named value, -1 where nothing is said."""
    rows = np.full((len(captions), len(ATTRIBUTES)), -1, np.int64)
    for row, text in zip(rows, captions, strict=True):
        said = parse(text)
        for k, (name, values) in enumerate(ATTRIBUTES.items()):
            if name in said:
                row[k] = values.index(said[name])
    return torch.from_numpy(rows)


class AttributeScore:
    """Counts hits of predictions against labels, batch by batch."""

    def __init__(self) -> None:
        self.hits = torch.zeros(len(ATTRIBUTES), dtype=torch.int64)
        self.asked = torch.zeros(len(ATTRIBUTES), dtype=torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Both int64 [B, attributes]; a label of -1 is not scored."""
        if predictions.shape != labels.shape or labels.shape[1:] != self.hits.shape:
            raise ValueError(
                f"two [B, {len(ATTRIBUTES)}] expected, got {list(predictions.shape)} and {list(labels.shape)}"
            )
        asked = labels >= 0
        self.asked += asked.sum(0)
        self.hits += ((predictions == labels) & asked).sum(0)

    @property
    def accuracy(self) -> float:
        """Share of the named attributes that were met, in [0, 1]; every naming counts once. 0 if none was named."""
        return float(self.hits.sum()) / max(1, int(self.asked.sum()))

    @property
    def by_attribute(self) -> dict[str, float | None]:
        """The same for each attribute; None where no caption named it."""
        pairs = zip(ATTRIBUTES, self.hits.tolist(), self.asked.tolist(), strict=True)
        return {name: hits / asked if asked else None for name, hits, asked in pairs}
