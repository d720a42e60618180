"""The pictures that the report shows: the first few of each set, kept while the others pass by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2p.files import atomic_path
from l2p.images import Pictures

FILE = "evaluation/pictures.npz"


class Shown:
    """Keeps the first ``limit`` pictures of each set; memory does not grow with their number."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[str, list[Pictures]] = {}

    def add(self, pictures: dict[str, Pictures]) -> None:
        """Add the next pictures, name to uint8 [B, H, W, 3]."""
        for name, batch in pictures.items():
            kept = self._kept.setdefault(name, [])
            # copies: a slice, even an empty one, would keep its whole batch in memory
            kept += [picture.copy() for picture in batch[: max(0, self.limit - len(kept))]]

    def pictures(self, name: str) -> Pictures:
        """The pictures kept of a set, uint8 [n, H, W, 3]; KeyError for a set that never came."""
        return np.stack(self._kept[name])

    def save(self, folder: str | Path, captions: Sequence[str], **others: Any) -> None:
        """Write ``folder/evaluation/pictures.npz``: the pictures, their captions, and other arrays."""
        arrays = {name: self.pictures(name) for name in self._kept}
        with atomic_path(Path(folder) / FILE) as partial:
            np.savez_compressed(
                partial, captions=np.array(captions[: self.limit], dtype=np.str_), **arrays, **others
            )
