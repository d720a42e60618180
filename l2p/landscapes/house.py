"""The house: gable front, side wall in the shade, tiled roof, door, windows, chimney and smoke."""

from __future__ import annotations

import numpy as np

from .objects import ground_shadow
from .paint import Canvas, fbm1, fbm2, lerp, polygon, rgb, smoothstep, visible
from .palette import SNOW, Palette
from .scene import House, Scene

_WALLS = (rgb(244, 234, 214), rgb(214, 92, 74), rgb(236, 206, 150), rgb(196, 212, 216))
_ROOFS = (rgb(176, 74, 58), rgb(96, 86, 104), rgb(134, 84, 60))


class _Pen:
    """Draws in house units: x from the gable's outer corner over the house (0 to 1), z upwards."""

    def __init__(self, canvas: Canvas, house: House) -> None:
        self.canvas, self.house = canvas, house
        s = house.size
        self.view = canvas.window(
            house.u - 0.62 * s, house.u + 0.62 * s, house.y - 0.95 * s, house.y + 0.06 * s
        )

    def place(self, x: float, z: float) -> tuple[float, float]:
        home = self.house
        return home.u + home.side * (0.5 - x) * home.size, home.y - z * home.size

    def fill(self, points: list[tuple[float, float]], color: np.ndarray, opacity: float = 1.0) -> None:
        corners = [self.place(x, z) for x, z in points]
        us, ys = zip(*corners, strict=True)
        view = self.canvas.window(min(us), max(us), min(ys), max(ys))
        if view is None:
            return
        self.canvas.mix(
            view, polygon(view, corners) * np.float32(opacity), color(view) if callable(color) else color
        )

    def box(self, x: float, z: float, w: float, h: float, color: np.ndarray, skew: float = 0.0) -> None:
        """A rectangle from its lower corner; skew tilts it along a receding wall."""
        self.fill([(x, z), (x + w, z + skew * w), (x + w, z + h + skew * w), (x, z + h)], color)


def paint_house(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """The house of the scene, where it has one."""
    house = scene.home
    if house is None:
        return
    pen = _Pen(canvas, house)
    _smoke(canvas, scene, colors, pen)
    ground_shadow(canvas, scene, colors, house.u, house.y, 0.62 * house.size)
    if pen.view is None:
        return
    sunny = scene.sun[0] * house.side > 0  # side +1 turns the gable to the right
    wall, roof = _WALLS[house.wall], _ROOFS[house.roof]
    front = colors.tone(wall, 0.95 if sunny else 0.68)
    flank = colors.tone(wall, 0.34 if sunny else 0.5)
    roof_color = colors.tone(SNOW if scene.season == "winter" else roof, 0.72 if sunny else 0.9)
    wood = colors.tone(rgb(250, 246, 238), 0.8)
    dark = colors.tone(rgb(96, 62, 50), 0.55)
    pitch = 0.4  # wall height; the ridge is at 0.7 over the middle of the gable
    _chimney(pen, colors, scene)

    def planks(view) -> np.ndarray:
        rows = (np.float32(house.y) - view.y) / np.float32(0.034 * house.size)
        seam = smoothstep(0.36, 0.5, np.abs(rows - np.floor(rows) - 0.5)) - 0.3
        grain = fbm2(view.u * 0.5, view.y * 3, 77, 0.012, view.px, 4)
        shade = np.float32(0.16 * visible(0.034 * house.size, view.px)) * seam + np.float32(0.04) * grain
        return np.asarray(1 - shade, np.float32) * np.ones((len(view.y), view.u.shape[1]), np.float32)

    pen.fill([(0.42, 0), (0.98, 0.035), (0.98, pitch), (0.42, pitch)], lambda v: flank * planks(v)[..., None])
    pen.fill(
        [(0.0, 0), (0.43, 0), (0.43, pitch), (0.215, 0.7), (0.0, pitch)],
        lambda v: front * planks(v)[..., None],
    )
    pen.fill(
        [(0.41, pitch), (0.99, pitch), (0.99, pitch - 0.035), (0.41, pitch - 0.06)],
        colors.shaded(wall * 0.6),
        0.7,
    )

    def tiles(view) -> np.ndarray:
        z = (np.float32(house.y) - view.y) / np.float32(house.size)
        x = np.float32(0.5) - (view.u - np.float32(house.u)) / np.float32(house.side * house.size)
        step = 0.036
        line = z / np.float32(step)
        row = np.floor(line)
        along = (x + z * np.float32(0.55)) / np.float32(step * 1.1) + 0.5 * (row % 2)
        lap = smoothstep(0.0, 0.3, line - row) - 0.85
        joint = smoothstep(0.36, 0.5, np.abs(along - np.floor(along) - 0.5)) - 0.2
        weight = visible(step * house.size, view.px) * (0.25 if scene.season == "winter" else 1.0)
        glow = np.float32(0.32) * (z - 0.55) + weight * (0.3 * lap - 0.16 * joint)
        glow = glow + np.float32(0.05) * fbm2(view.u, view.y, 78, 0.02, view.px, 5)
        return (roof_color * np.clip(1 + glow, 0, 1.3)[..., None]).astype(np.float32)

    pen.fill([(0.215, 0.725), (0.86, 0.725), (1.04, 0.36), (0.44, 0.345)], tiles)
    trim = roof_color if scene.season == "winter" else lerp(roof_color, dark, 0.35)
    pen.fill([(0.215, 0.735), (0.215, 0.655), (-0.045, 0.325), (-0.045, 0.38)], trim)
    pen.fill([(0.215, 0.735), (0.215, 0.655), (0.455, 0.325), (0.475, 0.37)], trim)
    door = colors.tone(
        (rgb(74, 112, 116), rgb(120, 66, 48), rgb(92, 70, 58), rgb(150, 60, 52))[house.wall], 0.7
    )
    pen.box(0.045, 0, 0.15, 0.29, wood)
    pen.box(0.062, 0, 0.116, 0.272, door)
    pen.box(0.15, 0.12, 0.014, 0.02, rgb(240, 210, 120))
    _window(pen, scene, colors, wood, 0.255, 0.14, 0.13, 0.16, 0.0)
    _window(pen, scene, colors, wood, 0.165, 0.43, 0.1, 0.11, 0.0)
    _window(pen, scene, colors, wood, 0.515, 0.14, 0.145, 0.16, 0.05)
    _window(pen, scene, colors, wood, 0.755, 0.15, 0.135, 0.155, 0.05)


def _window(
    pen: _Pen,
    scene: Scene,
    colors: Palette,
    wood: np.ndarray,
    x: float,
    z: float,
    w: float,
    h: float,
    skew: float,
) -> None:
    """A framed window with a cross bar at (x, z), w wide and h high; at night it glows."""
    glowing = scene.time in ("night", "dusk")
    glass = rgb(255, 206, 104) if glowing else colors.tone(rgb(96, 134, 168), 0.75)
    if glowing:
        u, y = pen.place(x + 0.5 * w, z + 0.5 * h)
        reach = 0.5 * pen.house.size
        view = pen.canvas.window(u - reach, u + reach, y - reach, y + reach)
        if view:
            square = ((view.u - np.float32(u)) ** 2 + (view.y - np.float32(y)) ** 2) / np.float32(
                (0.16 * pen.house.size) ** 2
            )
            pen.canvas.add(view, np.float32(0.3) * np.exp(-square), rgb(255, 170, 70))
    pen.box(x, z, w, h, wood * (0.8 if glowing else 1), skew)
    m = 0.014
    pen.box(x + m, z + m, w - 2 * m, h - 2 * m, glass, skew)
    if visible(0.02 * pen.house.size, pen.canvas.px) > 0 and not glowing:  # the sky in the upper panes
        pen.box(x + m, z + 0.55 * h, w - 2 * m, 0.45 * h - m, lerp(glass, colors.low, 0.35), skew)
    bar = 0.012
    pen.box(x + 0.5 * (w - bar), z, bar, h, wood, skew)
    pen.box(x, z + 0.5 * (h - bar), w, bar, wood, skew)
    pen.box(x - 0.01, z - 0.012, w + 0.02, 0.018, wood, skew)


def _chimney(pen: _Pen, colors: Palette, scene: Scene) -> None:
    brick = rgb(168, 92, 74)

    def bricks(view) -> np.ndarray:
        line = (np.float32(pen.house.y) - view.y) / np.float32(0.025 * pen.house.size)
        seam = smoothstep(0.34, 0.5, np.abs(line - np.floor(line) - 0.5)) - 0.3
        shade = 1 - np.float32(0.2 * visible(0.025 * pen.house.size, view.px)) * seam
        return colors.tone(brick, 0.62) * shade[..., None] * np.ones((1, view.u.shape[1], 1), np.float32)

    pen.box(0.62, 0.6, 0.1, 0.27, bricks)
    pen.box(0.605, 0.85, 0.13, 0.035, colors.tone(SNOW if scene.season == "winter" else brick * 0.8, 0.8))


def _smoke(canvas: Canvas, scene: Scene, colors: Palette, pen: _Pen) -> None:
    """A plume that widens, fades and drifts."""
    u, y = pen.place(0.67, 0.88)
    tall = 0.2
    view = canvas.window(u - 0.14, u + 0.14, y - tall, y + 0.01)
    if view is None:
        return
    t = np.clip((np.float32(y) - view.y) / np.float32(tall), 0, 1)
    way = -pen.house.side
    middle = u + way * 0.05 * t**1.4 + 0.016 * t * fbm1(t * 0.5 + 7, scene.seed % 60013, 0.14, 0.001, 2)
    width = np.float32(0.007) + np.float32(0.026) * t
    x = (view.u - middle.astype(np.float32)) / width + np.float32(0.3) * fbm2(
        view.u, view.y, 9, 0.03, view.px, 5
    )
    alpha = np.float32(0.6) * np.exp(-x * x) * smoothstep(1.0, 0.25, t) * smoothstep(0.0, 0.04, t)
    smoke = lerp(colors.low, colors.light, 0.6)
    canvas.mix(view, alpha, np.clip(smoke * (0.7 if scene.time == "night" else 1), 0, 1))
