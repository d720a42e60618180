"""The procedural worlds by name: what a recipe's key ``world`` selects. All share attributes, captions and seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np

from l2p.errors import UserError

from . import first, v2
from .scene import Scene

WorldName = Literal["landscapes", "landscapes-v2"]
WORLDS: dict[WorldName, ModuleType] = {"landscapes": first, "landscapes-v2": v2}


@dataclass(frozen=True)
class World:
    """One world; ``scene``, ``render`` and ``render_batch`` are those of its module."""

    name: str
    module: ModuleType

    def scene(self, seed: int) -> Scene:
        """The scene of a seed (an integer of at least 0)."""
        return self.module.Scene.from_seed(seed)

    def render(self, scene: Scene, height: int, width: int) -> np.ndarray:
        """The picture of one of this world's scenes, uint8 [height, width, 3]."""
        return self.module.render(scene, height, width)

    def render_batch(self, seeds: Iterable[int], height: int, width: int) -> np.ndarray:
        """The pictures of many seeds, uint8 [N, height, width, 3]."""
        return self.module.render_batch(seeds, height, width)

    def fingerprint(self, height: int, width: int) -> str:
        """Changes when the pictures of this size change: sha256 over the averages of a few, rounded to eighths.

        Averages over blocks of 8 x 8 pixels, so that a last digit that differs between processors does not count.
        """
        digest = hashlib.sha256(self.name.encode())
        for picture in self.render_batch(range(8), height, width):
            rows, columns = (max(1, side // 8) for side in (height, width))
            blocks = [np.array_split(part, columns, 1) for part in np.array_split(picture, rows, 0)]
            means = np.array([[block.mean((0, 1)) for block in row] for row in blocks])
            digest.update(np.round(means / 4).astype(np.int16).tobytes())
        return digest.hexdigest()


def load_world(name: str) -> World:
    """The world of this name.

    Raises:
        UserError: there is none.
    """
    if name not in WORLDS:
        raise UserError(f"no world is called {name!r}: expected one of {', '.join(WORLDS)}")
    return World(name, WORLDS[name])
