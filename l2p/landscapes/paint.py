"""Painting primitives: a canvas, antialiased shapes, and noise that knows the size of a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SIZE = 256
_TABLE = np.random.default_rng(20240229).uniform(-1, 1, (_SIZE, _SIZE)).astype(np.float32)

_FLAT = _TABLE.ravel()


@dataclass(frozen=True)
class View:
    """A window of the canvas: its rows and columns, u [1, w], y [h, 1] and the pixel size."""

    rows: slice
    cols: slice
    u: np.ndarray
    y: np.ndarray
    px: float


class Canvas:
    """A picture in the making: ``img`` float32 [H, W, 3] in [0, 1], a pixel being ``px`` high and wide.

    The colours lie in planes (``img`` is a view of [3, H, W]), which numpy walks several times as fast. Painting is
    limited to ``rows``: a large picture is painted in bands, whose arrays fit the processor's cache.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width, self.px = height, width, 1.0 / height
        self.u = ((np.arange(width) + 0.5 - width / 2) / height).astype(np.float32)
        self.y = ((np.arange(height) + 0.5) / height).astype(np.float32)
        self.planes = np.zeros((3, height, width), np.float32)
        self.img = self.planes.transpose(1, 2, 0)
        self.rows = (0, height)

    def window(self, u0: float, u1: float, y0: float, y1: float) -> View | None:
        """The pixels that touch the box, or None where the box lies outside the rows that are painted."""
        (first, last), h, half = self.rows, self.height, self.width / 2
        c0, c1 = max(0, int(u0 * h + half) - 1), min(self.width, int(u1 * h + half) + 2)
        r0, r1 = max(first, int(y0 * h) - 1), min(last, int(y1 * h) + 2)
        if c0 >= c1 or r0 >= r1:
            return None
        return View(slice(r0, r1), slice(c0, c1), self.u[None, c0:c1], self.y[r0:r1, None], self.px)

    def mix(self, view: View, alpha: np.ndarray, color: np.ndarray) -> None:
        """Lay a colour ([3] or [h, w, 3]) over the window with opacity alpha [h, w]."""
        part = self.img[view.rows, view.cols]
        part += alpha[..., None] * (color - part)

    def add(self, view: View, light: np.ndarray, color: np.ndarray) -> None:
        """Screen a glow of strength light [h, w] in [0, 1] and of one colour over the window."""
        part = self.img[view.rows, view.cols]
        part += light[..., None] * color * (1 - part)

    def picture(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return np.stack([np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8) for plane in self.planes], -1)


def rgb(*values: float) -> np.ndarray:
    """A colour float32 [3] in [0, 1] from three values in [0, 255]."""
    return np.array(values, np.float32) / np.float32(255)


def lerp(a: np.ndarray, b: np.ndarray, t: np.ndarray | float) -> np.ndarray:
    """Between two colours [3]; t is a number or an array [h, w], giving [h, w, 3]."""
    if not isinstance(t, np.ndarray):
        return a + (b - a) * np.float32(t)
    return np.moveaxis(np.stack([a[..., c] + (b - a)[..., c] * t for c in range(3)]), 0, -1)


def smoothstep(a: float, b: float, x: np.ndarray) -> np.ndarray:
    """0 below a, 1 above b, smooth between (a may be above b)."""
    t = np.clip((x - a) / (b - a), 0, 1)
    return t * t * (3 - 2 * t)


def cover(distance: np.ndarray, px: float, soft: float = 0.0) -> np.ndarray:
    """Opacity of a shape from a signed distance, over one pixel or a softer edge."""
    return np.clip(0.5 - distance / (px + soft), 0, 1)


def visible(period: float | np.ndarray, px: float) -> float | np.ndarray:
    """How much of a texture of this period a picture carries: 0 below 2.5 pixels, 1 above 6."""
    if isinstance(period, float):
        s = min(max((period / px - 2.5) / 3.5, 0.0), 1.0)
        return s * s * (3 - 2 * s)
    t = np.clip((np.asarray(period, np.float32) / px - 2.5) / 3.5, 0, 1)
    return t * t * (3 - 2 * t)


def _cell(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    floor = np.floor(x)
    t = (x - floor).astype(np.float32)
    i = floor.astype(np.int32) & (_SIZE - 1)
    return i, (i + 1) & (_SIZE - 1), t * t * (3 - 2 * t)


def noise1(x: np.ndarray, key: int) -> np.ndarray:
    """Smooth noise in [-1, 1] of unit period along any array of positions."""
    row = _TABLE[key % _SIZE]
    i, j, t = _cell(x + (key // _SIZE) % _SIZE)
    return row[i] + (row[j] - row[i]) * t


def noise2(x: np.ndarray, y: np.ndarray, key: int) -> np.ndarray:
    """Smooth noise in [-1, 1] of unit period; x and y broadcast against each other."""
    i, j, s = _cell(x + key % 251)
    k, m, t = _cell(y + key % 241)
    if x.shape[0] == 1 and y.shape[-1] == 1:  # a grid: first along the rows, then along the columns
        rows = _TABLE[k[:, 0]] + (_TABLE[m[:, 0]] - _TABLE[k[:, 0]]) * t
        left = rows[:, i[0]]
        return left + (rows[:, j[0]] - left) * s
    k, m = k * _SIZE, m * _SIZE
    top, low = _FLAT.take(k + i), _FLAT.take(m + i)
    top += (_FLAT.take(k + j) - top) * s
    low += (_FLAT.take(m + j) - low) * s
    return top + (low - top) * t


def fbm1(
    x: np.ndarray, key: int, period: float, px: float, octaves: int = 8, gain: float = 0.5
) -> np.ndarray:
    """Fractal noise along x, with the octaves that the pixels carry."""
    total, size = np.zeros_like(x), 1.0
    for k in range(octaves):
        weight = float(visible(period, px))
        if weight == 0:
            break
        total += np.float32(size * weight) * noise1(x / period, key + 7919 * k)
        period, size = period / 2, size * gain
    return total


def fbm2(x: np.ndarray, y: np.ndarray, key: int, period: float, px: float, octaves: int = 6,
         gain: float = 0.5) -> np.ndarray | float:  # fmt: skip
    """Fractal noise over the plane, with the octaves that the pixels carry (0.0 if none)."""
    total, size = 0.0, 1.0
    for k in range(octaves):
        weight = float(visible(period, px))
        if weight == 0:
            break
        total = total + np.float32(size * weight) * noise2(x / period, y / period, key + 7919 * k)
        period, size = period / 2, size * gain
    return total


def polygon(view: View, points: list[tuple[float, float]]) -> np.ndarray:
    """Opacity [h, w] of a convex polygon with corners (u, y)."""
    (ax, ay), (bx, by), (cx, cy) = points[:3]
    turn = 1.0 if (bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > 0 else -1.0
    alpha = None
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        length = np.hypot(x1 - x0, y1 - y0) * turn * view.px
        p, q = np.float32((y1 - y0) / length), np.float32((x1 - x0) / length)
        side = np.clip(
            (q * (view.y - np.float32(y0)) + np.float32(0.5)) - p * (view.u - np.float32(x0)), 0, 1
        )
        alpha = side if alpha is None else alpha * side
    return alpha


def blobs(
    x: np.ndarray, y: np.ndarray, rounds: np.ndarray, light: tuple[float, float]
) -> tuple[np.ndarray, ...]:
    """A lump of circles (x, y, r) [k, 3]: signed distance [h, w] and shade in [-1, 1] by the light."""
    cx, cy, r = (rounds[:, n].astype(np.float32)[:, None, None] for n in range(3))
    dx, dy = (x - cx) / r, (y - cy) / r
    length = np.sqrt(dx * dx + dy * dy)
    gap = (length - 1) * r
    shade = (dx * np.float32(light[0]) + dy * np.float32(light[1])) / np.maximum(length, 1)
    weight = np.exp(np.clip(-gap * np.float32(9.0) / r.mean(), -30, 30))
    return gap.min(0), (weight * shade).sum(0) / weight.sum(0)
