"""From scenes to pictures."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..paint import Canvas, noise1, smoothstep
from .ground import paint_land, paint_path
from .house import paint_house
from .mountains import paint_mountains
from .palette import Palette, palette_of
from .scene import Scene
from .sky import paint_birds, paint_sky
from .trees import paint_tree
from .water import paint_water

BAND = 256  # rows that are painted together


def render(scene: Scene, height: int = 256, width: int = 256) -> np.ndarray:
    """The picture of a scene, uint8 [height, width, 3].

    Raises:
        ValueError: a side below 1 pixel.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} x {width}")
    canvas, colors = Canvas(height, width), palette_of(scene)
    # What stands behind the water is painted before it, to be mirrored.
    shore = scene.lake.y - scene.lake.b + 0.012 if scene.lake else 0.0
    bands = [(row, min(row + BAND, height)) for row in range(0, height, BAND)]
    for canvas.rows in bands:
        paint_sky(canvas, scene, colors)
        paint_mountains(canvas, scene, colors)
        paint_birds(canvas, scene, colors)
        paint_land(canvas, scene, colors)
        paint_path(canvas, scene, colors)
        _objects(canvas, scene, colors, -1.0, shore)
    for canvas.rows in bands:
        paint_water(canvas, scene, colors)
    for canvas.rows in bands:  # after all water: what stands before it is not mirrored
        if scene.time == "dawn":
            _mist(canvas, scene, colors)
        _objects(canvas, scene, colors, shore, 2.0)
    return canvas.picture()


def render_batch(seeds: Iterable[int], height: int = 256, width: int = 256) -> np.ndarray:
    """The pictures of many seeds, uint8 [N, height, width, 3]."""
    pictures = [render(Scene.from_seed(int(seed)), height, width) for seed in seeds]
    return np.stack(pictures) if pictures else np.zeros((0, height, width, 3), np.uint8)


def _objects(canvas: Canvas, scene: Scene, colors: Palette, start: float, end: float) -> None:
    """The house and the trees whose feet lie in [start, end), the far ones first."""
    due = [(tree.y, tree) for tree in scene.wood] + ([(scene.home.y, None)] if scene.home else [])
    for y, tree in sorted(due, key=lambda thing: thing[0]):
        if not start <= y < end:
            continue
        if tree is None:
            paint_house(canvas, scene, colors)
        else:
            paint_tree(canvas, scene, colors, tree)


def _mist(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """Two bands of morning mist over the land."""
    key = scene.seed % 59999
    for k, (y, tall, strength) in enumerate(((0.11, 0.022, 0.45), (0.22, 0.03, 0.25))):
        middle = scene.horizon + y
        view = canvas.window(-99, 99, middle - 0.1, middle + 0.1)
        if view is None:
            continue
        drift = view.y - np.float32(middle) + np.float32(0.02) * noise1(view.u / 0.35 + 2 * k, key)
        along = smoothstep(-0.7, 0.6, noise1(view.u / 0.5, key + 9 + k))
        canvas.mix(
            view, np.float32(strength) * along * np.exp(-((drift / np.float32(tall)) ** 2)), colors.haze
        )
