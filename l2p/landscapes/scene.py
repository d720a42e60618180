"""A scene: seven attributes and the continuous parameters of one small world.

Lengths are in picture heights.  ``u`` is measured from the middle of the picture to the right,
``y`` from the top (0) to the bottom (1), so a scene fits a picture of any aspect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "time": ("dawn", "day", "dusk", "night"),
    "season": ("summer", "autumn", "winter"),
    "water": ("none", "river", "lake"),
    "house": ("no", "yes"),
    "trees": ("none", "pines", "broadleaf"),
    "mountains": ("no", "yes"),
    "sky": ("clear", "cloudy"),
}


@dataclass(frozen=True)
class Lake:
    """A lake: a flat-topped oval around (u, y) with half axes (a, b)."""

    u: float
    y: float
    a: float
    b: float

    def distance(self, u: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Approximate signed distance to the shore, negative in the water."""
        p, q = np.abs((u - self.u) / self.a), np.abs((y - self.y) / self.b)
        r = np.sqrt(np.sqrt(p**4 + q**4) + 1e-6)
        slope = np.sqrt((p**3 / self.a) ** 2 + (q**3 / self.b) ** 2) / (r**3) + 1e-3
        return (r - 1) / slope

    def shore(self, u: float) -> float:
        """The far shore's y at u (the lake's middle where the lake does not reach)."""
        return self.y - self.b * max(0.0, 1 - abs((u - self.u) / self.a) ** 4) ** 0.25


@dataclass(frozen=True)
class River:
    """A river from (u, y) winding to the foreground, ``width`` wide at the bottom."""

    u: float
    y: float
    swing: float
    phase: float
    width: float
    drift: float

    def course(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Middle line, half width and slope of the middle line at the heights y."""
        t = np.clip((y - self.y) / (1 - self.y), 0, 1.2)
        angle = self.phase + 7.5 * np.sqrt(t + 0.02)
        middle = self.u + self.drift * t + self.swing * (0.15 + t) * np.sin(angle)
        half = self.width * (0.03 + 0.97 * t**1.5) * 0.5
        turn = self.swing * (np.sin(angle) + (0.15 + t) * np.cos(angle) * 3.75 / np.sqrt(t + 0.02))
        return middle, half, (self.drift + turn) / (1 - self.y)

    def distance(self, u: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Approximate signed distance to the bank, negative in the water."""
        middle, half, slope = self.course(y)
        side = (np.abs(u - middle) - half) / np.sqrt(1 + slope**2)
        return np.maximum(side, self.y - y)


@dataclass(frozen=True)
class House:
    """A house standing at (u, y), ``size`` wide, its gable on the left (side -1) or right (+1)."""

    u: float
    y: float
    size: float
    side: int
    wall: int
    roof: int


@dataclass(frozen=True)
class Tree:
    """A tree of one kind standing at (u, y); ``key`` selects its shape, ``hue`` in [0, 1] its colour."""

    kind: str
    u: float
    y: float
    height: float
    hue: float
    key: int


@dataclass(frozen=True)
class Peak:
    """A mountain top at (u, y) whose flanks fall with the given slopes."""

    u: float
    y: float
    left: float
    right: float
    key: int


@dataclass(frozen=True)
class Scene:
    """One world; :meth:`from_seed` draws it, ``render`` paints it and ``caption`` tells it."""

    seed: int
    time: str
    season: str
    water: str
    house: str
    trees: str
    mountains: str
    sky: str
    horizon: float
    sun: tuple[float, float]
    peaks: tuple[Peak, ...]
    lake: Lake | None
    river: River | None
    home: House | None
    wood: tuple[Tree, ...]
    clouds: tuple[tuple[float, float, float, int], ...]

    @property
    def attributes(self) -> dict[str, str]:
        """The value of every attribute, in the order of ATTRIBUTES."""
        return {name: getattr(self, name) for name in ATTRIBUTES}

    @property
    def labels(self) -> np.ndarray:
        """int64 [7]: the index of every attribute's value."""
        return np.array([values.index(getattr(self, name)) for name, values in ATTRIBUTES.items()], np.int64)

    @classmethod
    def from_seed(cls, seed: int) -> Scene:
        """The scene of a seed (an integer of at least 0)."""
        return cls.from_attributes(seed)

    @classmethod
    def from_attributes(cls, seed: int, **fixed: str) -> Scene:
        """The scene of a seed with the named attributes forced to the given values."""
        if not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
        for name, value in fixed.items():
            if name not in ATTRIBUTES:
                raise ValueError(f"unknown attribute {name!r}, expected one of {', '.join(ATTRIBUTES)}")
            if value not in ATTRIBUTES[name]:
                raise ValueError(f"{name} must be one of {', '.join(ATTRIBUTES[name])}, got {value!r}")
        rng = np.random.default_rng(int(seed))
        drawn = {name: values[rng.integers(len(values))] for name, values in ATTRIBUTES.items()}
        chosen = drawn | fixed
        # each part has its own stream, so that forcing one attribute leaves the other parts in place
        streams = [np.random.default_rng([int(seed), k]) for k in range(1, 7)]
        return cls._compose(int(seed), chosen, streams)

    @classmethod
    def _compose(cls, seed: int, chosen: dict[str, str], streams: list[np.random.Generator]) -> Scene:
        horizon = float(streams[0].uniform(0.50, 0.56))
        sun = _sun(chosen["time"], streams[0])
        lake = _lake(horizon, streams[1]) if chosen["water"] == "lake" else None
        river = _river(horizon, streams[1]) if chosen["water"] == "river" else None
        home = _house(horizon, lake, river, streams[2]) if chosen["house"] == "yes" else None
        wood = _trees(chosen["trees"], horizon, lake or river, home, streams[3])
        peaks = _peaks(horizon, sun, streams[4]) if chosen["mountains"] == "yes" else ()
        clouds = _clouds(streams[5]) if chosen["sky"] == "cloudy" else ()
        return cls(seed, **chosen, horizon=horizon, sun=sun, peaks=peaks, lake=lake, river=river,
                   home=home, wood=wood, clouds=clouds)  # fmt: skip


def _sun(time: str, rng: np.random.Generator) -> tuple[float, float]:
    """The sun's (or moon's) place: low on the left at dawn, low on the right at dusk, else high."""
    across, up = rng.uniform(0.16, 0.36), rng.uniform(0, 1)
    side = {"dawn": -1, "dusk": 1}.get(time, 1 if rng.random() < 0.5 else -1)
    return float(side * across), float(0.27 + 0.09 * up if time in ("dawn", "dusk") else 0.12 + 0.1 * up)


def _lake(horizon: float, rng: np.random.Generator) -> Lake:
    b = rng.uniform(0.12, 0.145)
    top = horizon + rng.uniform(0.12, 0.15)
    return Lake(float(rng.uniform(-0.2, 0.2)), float(top + b), float(rng.uniform(0.5, 0.72)), float(b))


def _river(horizon: float, rng: np.random.Generator) -> River:
    u, swing = rng.uniform(-0.14, 0.14), rng.uniform(0.13, 0.19)
    drift = -u * rng.uniform(0.3, 1.5)
    return River(float(u), horizon + 0.06, float(swing), float(rng.uniform(0, 6.28)),
                 float(rng.uniform(0.3, 0.42)), float(drift))  # fmt: skip


def _house(horizon: float, lake: Lake | None, river: River | None, rng: np.random.Generator) -> House:
    side = 1 if rng.random() < 0.5 else -1
    size, u = rng.uniform(0.22, 0.28), side * rng.uniform(0.1, 0.28)
    y = horizon + rng.uniform(0.17, 0.25)
    if lake:
        y = lake.shore(u) - 0.012
        y = min(y, lake.shore(u + 0.5 * size) - 0.006, lake.shore(u - 0.5 * size) - 0.006)
    if river:
        y = horizon + rng.uniform(0.15, 0.19)
        level = np.linspace(y - 0.05, y + 0.03, 7)
        middle, half, _ = river.course(level)
        left, right = np.min(middle - half), np.max(middle + half)
        gap = 0.5 * size + 0.02
        side = -1 if left > -right else 1
        u = np.clip(left - gap - rng.uniform(0, 0.08), -0.4, 1) if side < 0 else np.clip(
            right + gap + rng.uniform(0, 0.08), -1, 0.4)  # fmt: skip
    facing = -1 if u > 0 else 1
    return House(float(u), float(y), float(size), facing, int(rng.integers(4)), int(rng.integers(3)))


def _trees(kind: str, horizon: float, water: Lake | River | None, home: House | None,
           rng: np.random.Generator) -> tuple[Tree, ...]:  # fmt: skip
    if kind == "none":
        return ()
    trees: list[Tree] = []
    count = int(rng.integers(4, 9))
    for attempt in range(400):
        inside = len(trees) < count
        if len(trees) >= count + 6:
            break
        reach = rng.uniform(-0.5, 0.5) if inside else rng.choice([-1, 1]) * rng.uniform(0.58, 1.6)
        depth = rng.uniform(0, 1) ** 1.3
        y = horizon + 0.09 + (0.96 - horizon - 0.09) * depth
        size = (0.15 + 0.25 * depth) * rng.uniform(0.85, 1.15)
        hue, key = rng.uniform(), int(rng.integers(1 << 20))
        spread = size * (0.25 if kind == "pines" else 0.38)
        if depth > 0.4 and abs(reach) < 0.24:
            continue
        if home and abs(reach - home.u) < 0.55 * home.size + spread * (1 if y > home.y - 0.03 else 0.5):
            continue
        crowd = 0.5 if attempt < 300 else 0.3
        if any(abs(reach - t.u) < crowd * (spread + t.height * 0.3) for t in trees):
            continue
        probe = np.array([reach - 0.1 * size, reach, reach + 0.1 * size])
        if water and np.min(water.distance(probe, np.full(3, y))) < 0.012:
            continue
        trees.append(Tree(kind, float(reach), float(y), float(size), float(hue), key))
    return tuple(sorted(trees, key=lambda tree: tree.y))


def _peaks(horizon: float, sun: tuple[float, float], rng: np.random.Generator) -> tuple[Peak, ...]:
    count = int(rng.integers(4, 6))
    peaks = []
    for k in range(-count, count + 1):
        u = (k + rng.uniform(-0.3, 0.3)) * 1.25 / count
        y = horizon - rng.uniform(0.14, 0.36)
        if abs(u - sun[0]) < 0.17:  # leave the sun a gap to shine through
            y = max(y, min(sun[1] + 0.1, horizon - 0.08))
        peaks.append(Peak(float(u), float(y), float(rng.uniform(0.8, 1.3)), float(rng.uniform(0.8, 1.3)),
                          int(rng.integers(1 << 20))))  # fmt: skip
    return tuple(sorted(peaks, key=lambda peak: peak.y))


def _clouds(rng: np.random.Generator) -> tuple[tuple[float, float, float, int], ...]:
    """Clouds (u, y, width, key), the far and small ones first."""
    spots = [(k + rng.uniform(-0.35, 0.35)) * 0.33 for k in range(-5, 6)]
    heights = [0.07 + 0.3 * rng.uniform() ** 1.3 for _ in spots]
    clouds = [
        (float(u), float(y), float(rng.uniform(0.26, 0.4) * (1.25 - 1.4 * y)), int(rng.integers(1 << 20)))
        for u, y in zip(spots, heights, strict=True)
    ]
    return tuple(sorted(clouds, key=lambda cloud: -cloud[1]))
