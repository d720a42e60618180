"""Textures made of countable things (blades, leaves, stones, shingles), each with the pixels that can carry it.

A texture is a field of lightness around 0: whoever uses it adds it with a weight that falls to 0 where its things are
smaller than a few pixels (:func:`~l2p.landscapes.paint.visible`), so a picture averaged down is the smaller picture.
"""

from __future__ import annotations

import numpy as np

from ..paint import noise1, visible

_RANDOM = np.random.default_rng(20260105).uniform(0, 1, 256 * 256).astype(np.float32)

# Averages of the fields below, measured over thousands of things: what is taken off to centre them.
LEAVES_MEAN = {3: -0.047, 4: 0.1}
GRASS_MEAN = -0.085


def hashed(i: np.ndarray, j: np.ndarray, key: int = 0) -> np.ndarray:
    """A number in [0, 1] for every cell (i, j); i and j are integers and broadcast."""
    return _RANDOM.take((((j + 7 * key) & 255) << 8) + ((i + 13 * key) & 255))


def cells(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integer cell of each position, and where in the cell it lies, in [0, 1)."""
    floor = np.floor(x)
    return floor.astype(np.int32), (x - floor).astype(np.float32)


def seam(fraction: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """1 on the border between cells, 0 inside, for positions in a cell and a border as wide as ``width`` of it."""
    return np.clip(1.5 - np.minimum(fraction, 1 - fraction) / (np.float32(0.5) * width), 0, 1)


def stones(x: np.ndarray, y: np.ndarray, px: float, key: int, mortar: float = 0.16) -> np.ndarray:
    """Masonry of unit height in courses, stones of one and a half: lightness around 0; a pixel is ``px`` high."""
    j, q = cells(y)
    i, p = cells(x / np.float32(1.5) + np.float32(0.5) * (j & 1) + np.float32(0.2) * hashed(j, j, key))
    tone = hashed(i, j, key) - np.float32(0.5)
    joint = np.maximum(seam(q, mortar + px), seam(p, (mortar + px) / 1.5))
    light = np.float32(0.25) * (q - np.float32(0.5)) + np.float32(0.5) * tone
    return light * (1 - joint) - np.float32(0.32) * joint + np.float32(0.1)


def shingles(x: np.ndarray, y: np.ndarray, px: float, key: int) -> np.ndarray:
    """Lapped shingles of unit size: each has its tone, a dark lower edge over the next course, and thin joints."""
    j, q = cells(y)
    i, p = cells(x + np.float32(0.5) * (j & 1) + np.float32(0.25) * hashed(j, j, key))
    tone = hashed(i, j, key) - np.float32(0.5)
    low = np.float32(0.1) * (hashed(i, j, key + 5) - np.float32(0.5))
    lap = np.clip(1.2 - (q - low) / np.float32(0.14 + px), 0, 1)
    joint = seam(p, 0.08 + px)
    light = np.float32(0.5) * tone + np.float32(0.16) * (q - np.float32(0.5))
    return light - np.float32(0.42) * lap - np.float32(0.22) * joint * (1 - lap) + np.float32(0.1)


def leaves(x: np.ndarray, y: np.ndarray, px: float, key: int, layers: int = 3) -> np.ndarray:
    """Leaves of about unit length at all angles over a dark inside; a pixel is ``px`` wide. Lightness around 0."""
    light = np.full(np.broadcast_shapes(x.shape, y.shape), -0.55, np.float32)
    for n in range(layers):
        turn = np.float32(0.6 + 0.9 * n)
        c, s = np.cos(turn), np.sin(turn)
        i, p = cells(x * c + y * s + np.float32(17 * n))
        j, q = cells(y * c - x * s + np.float32(29 * n))
        a, b = hashed(i, j, key + n), hashed(i, j, key + 40 + n)
        dx, dy = p - np.float32(0.35) - np.float32(0.3) * a, q - np.float32(0.35) - np.float32(0.3) * b
        angle = (a + b) * np.float32(6.28)
        ca, sa = np.cos(angle), np.sin(angle)
        along, across = dx * ca + dy * sa, dy * ca - dx * sa
        # An almond: narrow ends, a rib in the middle, one half lighter than the other.
        gap = np.abs(across) - np.float32(0.24) * (1 - (along * np.float32(2.3)) ** 2)
        alpha = np.clip(0.5 - gap / np.float32(px + 0.02), 0, 1)
        rib = np.clip(1 - np.abs(across) / np.float32(0.02 + 0.7 * px), 0, 1) * visible(0.12, px)
        tone = np.float32(0.9) * (a - np.float32(0.4)) + np.where(
            across > 0, np.float32(0.09), np.float32(-0.07)
        )
        light += alpha * (tone + np.float32(0.22) * rib + np.float32(0.12 * n) - light)
    return light - np.float32(LEAVES_MEAN[layers])


def grass(
    u: np.ndarray, depth: np.ndarray, px: float, key: int, blade: float, wind: np.ndarray
) -> np.ndarray:
    """Rows of blades, the near ones over the far ones: lightness [h, w] around 0.

    Args:
        u: [1, w] across, in picture heights.
        depth: [h, 1] distance below the vanishing line, in picture heights; blades are as large as it says.
        px: size of a pixel, in picture heights.
        blade: width of a blade at depth 1; its height is seven times that.
        wind: [1, w] how far the tips lean, in blades.
    """
    light = np.zeros((depth.shape[0], u.shape[1]), np.float32)
    tall, ragged = 7.0 * blade, np.float32(3.0 * blade) * noise1(u / np.float32(1.7 * blade), key + 1)
    step = 1 + 0.4 * tall
    top = float(depth[0, 0])
    # Rows stand at fixed depths, so that every resolution has the same ones.
    first = int(np.floor(np.log(max(top, 2.0 * px / blade) / (1 + tall)) / np.log(step)))
    last = int(np.ceil(np.log(float(depth[-1, 0]) * (1 + 1.5 * tall)) / np.log(step)))
    for k in range(first, last + 1):
        d = step**k
        r0, r1 = int((d * (1 - 1.45 * tall) - top) / px), int((d * (1 + 0.45 * tall) - top) / px) + 2
        r0, r1 = max(r0, 0), min(r1, len(depth))
        if r0 >= r1:
            continue
        v = (np.float32(d) * (1 + ragged) - depth[r0:r1]) / np.float32(tall * d)
        x = u / np.float32(blade * d) + np.float32(37 * k % 251) - wind * (v * np.abs(v))
        i, p = cells(x)
        reach = v / (np.float32(0.55) + np.float32(0.45) * hashed(i, np.int32(k), key))
        p -= np.float32(0.5)
        gap = np.abs(p) - np.float32(0.5) * (1 - reach)
        gap *= np.float32(-blade * d / px)
        gap += np.float32(0.5)
        alpha = np.clip(gap, 0, 1, out=gap)
        alpha *= v > 0
        tone = hashed(i, np.int32(k), key + 3)
        tone *= np.float32(0.7)
        tone += reach + np.float32(0.3) * p
        part = light[r0:r1]
        tone -= part + np.float32(0.85)
        tone *= alpha
        part += tone
    return light - np.float32(GRASS_MEAN)
