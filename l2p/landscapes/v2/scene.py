"""Where things stand in a picture: few, large subjects, with the light on the other side of the house."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .. import scene as base
from ..scene import House, Lake, Peak, River, Tree

MIN_HOUSE = 0.3  # of the picture's height: a sixth of the width up to an aspect of 16:9


@dataclass(frozen=True)
class Scene(base.Scene):
    """One landscape; lengths in picture heights, ``side`` is where the main subject stands (-1 left, 1 right)."""

    side: int
    close: bool

    @classmethod
    def _compose(cls, seed: int, chosen: dict[str, str], streams: list[np.random.Generator]) -> Scene:
        # The horizon, the light and the distance come first: they do not depend on the attributes.
        horizon = float(streams[0].uniform(0.47, 0.55))
        sun = _sun(chosen["time"], streams[0])
        close = bool(streams[0].random() < 0.4)
        side = -1 if sun[0] > 0 else 1
        lake = _lake(horizon, streams[1]) if chosen["water"] == "lake" else None
        home = _house(horizon, side, close, lake, streams[2]) if chosen["house"] == "yes" else None
        river = _river(horizon, side, home, streams[1]) if chosen["water"] == "river" else None
        wood = _trees(chosen["trees"], horizon, side, close, lake or river, home, streams[3])
        peaks = _peaks(horizon, sun, streams[4]) if chosen["mountains"] == "yes" else ()
        clouds = _clouds(sun, streams[5]) if chosen["sky"] == "cloudy" else ()
        return cls(seed, **chosen, horizon=horizon, sun=sun, peaks=peaks, lake=lake, river=river, home=home,
                   wood=wood, clouds=clouds, side=side, close=close)  # fmt: skip


def _sun(time: str, rng: np.random.Generator) -> tuple[float, float]:
    """The centre of the sun or the moon: low on the left at dawn, low on the right at dusk, else high."""
    across, up = rng.uniform(0.18, 0.36), rng.uniform(0, 1)
    left = rng.random() < 0.5
    side = {"dawn": -1, "dusk": 1}.get(time, -1 if left else 1)
    return float(side * across), float(0.25 + 0.1 * up if time in ("dawn", "dusk") else 0.12 + 0.08 * up)


def _lake(horizon: float, rng: np.random.Generator) -> Lake:
    top = horizon + rng.uniform(0.14, 0.18)
    b = 0.5 * (rng.uniform(0.93, 0.98) - top)
    return Lake(float(rng.uniform(-0.15, 0.15)), float(top + b), float(rng.uniform(0.62, 0.95)), float(b))


def _river(horizon: float, side: int, home: House | None, rng: np.random.Generator) -> River:
    """A river that leaves the subject's side of the picture free; it gives way to a house."""
    u = -side * rng.uniform(0.02, 0.16)
    drift = -side * rng.uniform(0.08, 0.2)
    phase = (0.0 if side < 0 else np.pi) + rng.uniform(-0.7, 0.7)
    river = River(float(u), horizon + 0.06, float(rng.uniform(0.1, 0.15)), float(phase),
                  float(rng.uniform(0.36, 0.48)), float(drift))  # fmt: skip
    if home is None:
        return river
    middle, half, _ = river.course(np.linspace(home.y - 0.04, home.y + 0.05, 10))
    wall = side * home.u - 0.54 * home.size - 0.02  # the house's inner end, measured towards its side
    return replace(river, u=float(u - side * max(0.0, np.max(side * middle + half) - wall)))


def _house(horizon: float, side: int, close: bool, lake: Lake | None, rng: np.random.Generator) -> House:
    size = rng.uniform(0.42, 0.52) if close else rng.uniform(MIN_HOUSE, 0.38)
    u = side * min(rng.uniform(0.12, 0.28), 0.46 - 0.52 * size)
    y = horizon + (rng.uniform(0.21, 0.29) if close else rng.uniform(0.15, 0.22))
    if lake:
        y = min(lake.shore(u + k * size) for k in (-0.5, 0.0, 0.5)) - 0.015
    facing = -1 if u > 0 else 1
    return House(float(u), float(y), float(size), facing, int(rng.integers(5)), int(rng.integers(4)))


def _trees(kind: str, horizon: float, side: int, close: bool, water: Lake | River | None, home: House | None,
           rng: np.random.Generator) -> tuple[Tree, ...]:  # fmt: skip
    """One tall tree in front, opposite the house, a few smaller ones further back, and more beyond the square."""
    if kind == "none":
        return ()
    trees: list[Tree] = []
    width = 0.46 if kind == "pines" else 0.72  # of a crown, in heights of the tree
    count = int(rng.integers(3, 6))

    def grow(u: float, y: float, height: float, crowd: float) -> bool:
        hue, key = rng.uniform(), int(rng.integers(1 << 20))
        half = 0.5 * width * height
        if home:
            behind = y < home.y - 0.01
            if abs(u - home.u) < (0.35 if behind else 0.6) * home.size + half * (0.4 if behind else 1.0):
                return False
        if any(abs(u - t.u) < crowd * (half + 0.5 * width * t.height) for t in trees):
            return False
        if water:
            probe = u + np.array([-0.12, -0.06, 0, 0.06, 0.12]) * height
            if np.min(water.distance(probe, np.full(5, y))) < 0.012:
                return False
        trees.append(Tree(kind, float(u), float(y), float(height), float(hue), key))
        return True

    for _ in range(40):  # the tall one
        y = rng.uniform(horizon + 0.24, horizon + 0.38)
        height = rng.uniform(0.52, 0.66) if close else rng.uniform(0.42, 0.56)
        if grow(-side * rng.uniform(0.16, 0.4), y, height, 0.5):
            break
    for attempt in range(300):
        if len(trees) >= count:
            break
        depth = rng.uniform(0, 1)
        height = (0.2 + 0.16 * depth) * rng.uniform(0.9, 1.15)
        grow(rng.uniform(-0.48, 0.48), horizon + 0.08 + 0.15 * depth, height, 0.7 if attempt < 200 else 0.45)
    for _ in range(200):
        if len(trees) >= count + 6:
            break
        depth = rng.uniform(0, 1)
        height = (0.22 + 0.34 * depth) * rng.uniform(0.9, 1.15)
        grow(rng.choice([-1, 1]) * rng.uniform(0.6, 1.7), horizon + 0.08 + 0.3 * depth, height, 0.6)
    return tuple(sorted(trees, key=lambda tree: tree.y))


def _peaks(horizon: float, sun: tuple[float, float], rng: np.random.Generator) -> tuple[Peak, ...]:
    spacing = rng.uniform(0.36, 0.46)
    start = rng.uniform(-0.5, 0.5)
    peaks = []
    for k in range(-5, 6):
        u = (k + start + rng.uniform(-0.2, 0.2)) * spacing
        y = horizon - (rng.uniform(0.28, 0.4) if k % 2 else rng.uniform(0.16, 0.28))
        if abs(u - sun[0]) < 0.2:  # leave the sun a gap to shine through
            y = max(y, min(sun[1] + 0.1, horizon - 0.08))
        peaks.append(Peak(float(u), float(y), float(rng.uniform(0.85, 1.3)), float(rng.uniform(0.85, 1.3)),
                          int(rng.integers(1 << 20))))  # fmt: skip
    return tuple(sorted(peaks, key=lambda peak: peak.y))


def _clouds(
    sun: tuple[float, float], rng: np.random.Generator
) -> tuple[tuple[float, float, float, int], ...]:
    """Clouds (u, y, width, key), the far and small ones first; the sun stays free."""
    clouds = []
    for k in range(-4, 5):
        u, y = (k + rng.uniform(-0.3, 0.3)) * 0.42, 0.1 + 0.24 * rng.uniform() ** 1.2
        width = rng.uniform(0.36, 0.56) * (1.2 - 1.5 * y)
        if abs(u - sun[0]) < 0.5 * width and abs(y - 0.1 * width - sun[1]) < 0.12:
            y = sun[1] + 0.16 if sun[1] < 0.2 else 0.1
        clouds.append((float(u), float(y), float(width), int(rng.integers(1 << 20))))
    return tuple(sorted(clouds, key=lambda cloud: -cloud[1]))
