"""From scenes to pictures."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .house import paint_house
from .objects import paint_tree
from .paint import Canvas, noise1, smoothstep
from .palette import Palette
from .scene import Scene
from .sky import paint_birds, paint_sky
from .terrain import paint_land, paint_mountains, paint_water


def render(scene: Scene, height: int = 128, width: int = 128) -> np.ndarray:
    """The picture of a scene, uint8 [height, width, 3]."""
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} x {width}")
    canvas, colors = Canvas(height, width), Palette.of(scene)
    paint_sky(canvas, scene, colors)
    paint_mountains(canvas, scene, colors)
    paint_birds(canvas, scene, colors)
    paint_land(canvas, scene, colors)
    # what stands behind the lake is painted before it, to be mirrored
    shore = scene.lake.y - scene.lake.b if scene.lake else 0.0
    _objects(canvas, scene, colors, -1.0, shore + 0.012)
    paint_water(canvas, scene, colors)
    if scene.time == "dawn":
        _mist(canvas, scene, colors)
    _objects(canvas, scene, colors, shore + 0.012, 2.0)
    return canvas.picture()


def render_batch(seeds: Iterable[int], height: int = 128, width: int = 128) -> np.ndarray:
    """The pictures of many seeds, uint8 [N, height, width, 3]."""
    pictures = [render(Scene.from_seed(int(seed)), height, width) for seed in seeds]
    return np.stack(pictures) if pictures else np.zeros((0, height, width, 3), np.uint8)


def _objects(canvas: Canvas, scene: Scene, colors: Palette, start: float, end: float) -> None:
    """The house and the trees whose feet lie in [start, end), the far ones first."""
    house_due = scene.home is not None and start <= scene.home.y < end
    for tree in scene.wood:
        if not start <= tree.y < end:
            continue
        if house_due and scene.home.y <= tree.y:
            paint_house(canvas, scene, colors)
            house_due = False
        paint_tree(canvas, scene, colors, tree)
    if house_due:
        paint_house(canvas, scene, colors)


def _mist(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """Two bands of morning mist over the land."""
    key = scene.seed % 59999
    for k, (y, tall, strength) in enumerate(((0.13, 0.022, 0.5), (0.25, 0.03, 0.3))):
        middle = scene.horizon + y
        view = canvas.window(-99, 99, middle - 0.1, middle + 0.1)
        if view is None:
            continue
        drift = view.y - np.float32(middle) + np.float32(0.02) * noise1(view.u / 0.35 + 2 * k, key)
        along = smoothstep(-0.7, 0.6, noise1(view.u / 0.5, key + 9 + k))
        canvas.mix(
            view, np.float32(strength) * along * np.exp(-((drift / np.float32(tall)) ** 2)), colors.haze
        )
