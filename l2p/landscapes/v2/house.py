"""The house: gable front, side wall, shingled roof, door, windows with shutters, chimney and smoke."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..paint import Canvas, View, cover, fbm1, fbm2, lerp, polygon, rgb, smoothstep, visible
from ..scene import House
from .palette import SNOW, Palette
from .scene import Scene
from .texture import cells, hashed, leaves, shingles, stones
from .trees import ground_shadow

_WALLS = (rgb(248, 238, 220), rgb(206, 82, 66), rgb(238, 204, 142), rgb(168, 196, 208), rgb(196, 206, 172))
_ROOFS = (rgb(178, 78, 60), rgb(98, 90, 110), rgb(140, 92, 66), rgb(78, 104, 110))
_DOORS = (rgb(66, 108, 116), rgb(112, 62, 46), rgb(92, 70, 58), rgb(164, 60, 50), rgb(104, 62, 60))
_SHUTTERS = (rgb(74, 116, 122), rgb(246, 238, 224), rgb(124, 78, 54), rgb(70, 92, 122), rgb(96, 110, 80))
PITCH = 0.4  # height of the walls, in widths of the house; the ridge is at 0.72 over the middle of the gable

Fill = np.ndarray | Callable[[View], np.ndarray]


class _Pen:
    """Draws in house units: x from the gable's outer corner over the house (0 to 1), z upwards."""

    def __init__(self, canvas: Canvas, house: House, colors: Palette) -> None:
        self.canvas, self.house, self.colors = canvas, house, colors
        self.px = canvas.px / house.size

    def place(self, x: float, z: float) -> tuple[float, float]:
        home = self.house
        return home.u + home.side * (0.5 - x) * home.size, home.y - z * home.size

    def units(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """x [1, w] and z [h, 1] of a window's pixels."""
        home = self.house
        x = np.float32(0.5) - (view.u - np.float32(home.u)) / np.float32(home.side * home.size)
        return x, (np.float32(home.y) - view.y) / np.float32(home.size)

    def fill(self, points: list[tuple[float, float]], color: Fill, opacity: float = 1.0) -> None:
        corners = [self.place(x, z) for x, z in points]
        us, ys = zip(*corners, strict=True)
        view = self.canvas.window(min(us), max(us), min(ys), max(ys))
        if view is not None:
            paint = color(view) if callable(color) else color
            self.canvas.mix(view, polygon(view, corners) * np.float32(opacity), paint)

    def box(
        self, x: float, z: float, w: float, h: float, color: Fill, skew: float = 0.0, opacity: float = 1.0
    ) -> None:
        """A rectangle from its lower corner; skew tilts it along a receding wall."""
        self.fill(
            [(x, z + skew * 0), (x + w, z + skew * w), (x + w, z + h + skew * w), (x, z + h)], color, opacity
        )


def paint_house(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """The house of the scene, where it has one."""
    house = scene.home
    if house is None:
        return
    pen = _Pen(canvas, house, colors)
    _smoke(canvas, scene, colors, pen)
    ground_shadow(canvas, scene, colors, house.u, house.y, 0.56 * house.size)
    sunny = scene.sun[0] * house.side > 0  # side +1 turns the gable to the right
    winter = scene.season == "winter"
    wall, roof = _WALLS[house.wall], _ROOFS[house.roof]
    lit, dim = (0.98, 0.4) if sunny else (0.66, 0.74)
    wood = colors.tone(rgb(252, 249, 242), 0.85)
    _chimney(pen, colors, scene)
    flank = [(0.42, 0), (0.98, 0.035), (0.98, PITCH), (0.42, PITCH)]
    front = [(0.0, 0), (0.43, 0), (0.43, PITCH), (0.215, 0.7), (0.0, PITCH)]
    pen.fill(flank, _siding(pen, wall, dim, 0.05, 5))
    pen.fill(front, _siding(pen, wall, lit, 0.0, 9))
    base = rgb(150, 146, 142)
    pen.fill(
        [(0.42, -0.012), (0.98, 0.022), (0.98, 0.07), (0.42, 0.036)], _masonry(pen, base, 0.8 * dim, 0.05)
    )
    pen.fill(
        [(0.0, -0.012), (0.43, -0.012), (0.43, 0.036), (0.0, 0.036)], _masonry(pen, base, 0.8 * lit, 0.0)
    )
    # The eaves' shadow on the side wall, the verge's on the gable.
    shade = colors.shaded(wall * 0.55)
    pen.fill([(0.42, PITCH), (0.98, PITCH), (0.98, PITCH - 0.05), (0.42, PITCH - 0.075)], shade, 0.6)
    for a, b in (((0.0, PITCH), (0.215, 0.7)), ((0.43, PITCH), (0.215, 0.7))):
        pen.fill([a, b, (b[0], b[1] - 0.06), (a[0], a[1] - 0.045)], shade, 0.45)
    pen.box(0.415, 0.0, 0.016, PITCH, colors.tone(lerp(wall, rgb(255, 252, 246), 0.6), 0.5 * (lit + dim)))
    tone = 0.72 if sunny else 0.92
    pen.fill([(0.215, 0.728), (0.865, 0.728), (1.045, 0.355), (0.445, 0.34)], _roof(pen, scene, roof, tone))
    pen.fill([(0.445, 0.352), (1.045, 0.367), (1.045, 0.35), (0.445, 0.334)], colors.tone(roof * 0.62, 0.5))
    pen.box(0.205, 0.722, 0.67, 0.016, colors.tone(SNOW if winter else roof * 0.85, 0.9))
    trim = colors.tone(SNOW, 0.86) if winter else colors.tone(lerp(roof, rgb(255, 250, 240), 0.72), lit)
    for sign in (-1, 1):
        foot = 0.215 + sign * 0.262
        pen.fill([(0.215, 0.742), (0.215, 0.69), (foot, 0.332), (foot, 0.378)], trim)
        pen.fill([(0.215, 0.742), (0.215, 0.73), (foot, 0.367), (foot, 0.378)], colors.tone(roof * 0.8, 0.7))
    _door(pen, scene, wood, _DOORS[house.wall])
    shutter = colors.tone(_SHUTTERS[house.wall], 0.5 + 0.4 * lit)
    _window(pen, scene, wood, shutter, 0.262, 0.15, 0.11, 0.15, 0.0, 5)
    _window(pen, scene, wood, None, 0.168, 0.44, 0.094, 0.11, 0.0, 6)
    shutter = colors.tone(_SHUTTERS[house.wall], 0.3 + 0.5 * dim)
    _window(pen, scene, wood, shutter, 0.52, 0.155, 0.11, 0.15, 0.06, 7)
    _window(pen, scene, wood, shutter, 0.765, 0.162, 0.105, 0.145, 0.06, 8)


def _siding(pen: _Pen, wall: np.ndarray, light: float, skew: float, key: int) -> Callable[[View], np.ndarray]:
    """Boards that lap over each other, each with its tone and its grain."""
    step = 0.034

    def paint(view: View) -> np.ndarray:
        x, z = pen.units(view)
        if skew:
            z = z - np.float32(skew) * (x - np.float32(0.42)) * (1 - z / np.float32(PITCH))
        j, q = cells(z / np.float32(step))
        weight = visible(step, pen.px)
        lap = np.clip(1.1 - q / np.float32(0.16 + pen.px / step), 0, 1)
        boards = (
            np.float32(0.16) * (hashed(j, j, key) - np.float32(0.5))
            - np.float32(0.3) * lap
            + np.float32(0.05)
        )
        grain = fbm2(x * np.float32(0.12), z, 77, 0.012, pen.px, 5, 0.7)
        warm = np.float32(0.1) * (z - np.float32(0.25))
        tone = light + weight * boards + np.float32(0.07) * grain + warm
        return pen.colors.tone(
            wall, np.clip(tone, 0, 1.1) * np.ones((len(view.y), view.u.shape[1]), np.float32)
        )

    return paint


def _masonry(pen: _Pen, base: np.ndarray, light: float, skew: float) -> Callable[[View], np.ndarray]:
    step = 0.022

    def paint(view: View) -> np.ndarray:
        x, z = pen.units(view)
        z = z - np.float32(skew) * (x - np.float32(0.42))
        rows = stones(x / np.float32(step * 1.2), z / np.float32(step) + np.float32(8), pen.px / step, 3)
        return pen.colors.tone(base, np.clip(light + visible(step, pen.px) * rows, 0, 1))

    return paint


def _roof(pen: _Pen, scene: Scene, roof: np.ndarray, light: float) -> Callable[[View], np.ndarray]:
    """Shingles along the slope; in winter a blanket of snow with shingles at its lower edge."""
    step = 0.036

    def paint(view: View) -> np.ndarray:
        x, z = pen.units(view)
        along = (x + z * np.float32(0.52)) / np.float32(step * 0.95)
        weight = visible(step, pen.px)
        rows = weight * shingles(along, z / np.float32(step), pen.px / step, 13)
        moss = fbm2(x, z, 78, 0.09, pen.px, 7, 0.6)
        tone = (
            light
            + np.float32(0.3) * (z - np.float32(0.55))
            + np.float32(0.8) * rows
            + np.float32(0.08) * moss
        )
        body = pen.colors.tone(roof, np.clip(tone, 0, 1.1))
        if scene.season == "winter":
            low = (
                np.float32(0.4)
                + np.float32(0.022) * fbm1(x, 79, 0.12, pen.px, 6)
                - np.float32(0.012) * (x - 0.7)
            )
            snow = cover(low - z, pen.px, 0.003)
            fold = (
                light
                + np.float32(0.2) * (z - np.float32(0.5))
                + np.float32(0.06) * moss
                + np.float32(0.06) * rows
            )
            fold = fold - np.float32(0.25) * smoothstep(0.03, 0.0, z - low)
            body = body + snow[..., None] * (pen.colors.tone(SNOW, np.clip(fold, 0, 1)) - body)
        return body

    return paint


def _door(pen: _Pen, scene: Scene, wood: np.ndarray, color: np.ndarray) -> None:
    colors = pen.colors
    pen.box(0.028, -0.014, 0.176, 0.02, colors.tone(rgb(172, 168, 162), 0.7))  # a stone step
    pen.box(0.045, 0.004, 0.142, 0.292, wood)
    pen.box(0.06, 0.006, 0.112, 0.274, colors.tone(color, 0.72))
    if visible(0.05, pen.px) > 0:
        for x in (0.068, 0.12):
            for z, h in ((0.024, 0.09), (0.13, 0.06)):
                pen.box(x, z, 0.044, h, colors.tone(color, 0.42))
                pen.box(x + 0.005, z, 0.039, h - 0.005, colors.tone(color, 0.82))
    lit = scene.time in ("night", "dusk")
    pen.box(0.072, 0.208, 0.088, 0.058, rgb(255, 208, 120) if lit else colors.tone(rgb(120, 152, 178), 0.8))
    pen.box(0.113, 0.208, 0.006, 0.058, colors.tone(color, 0.6))
    pen.box(0.156, 0.118, 0.011, 0.016, rgb(240, 208, 120))


def _window(pen: _Pen, scene: Scene, wood: np.ndarray, shutter: np.ndarray | None, x: float, z: float, w: float,
            h: float, skew: float, key: int) -> None:  # fmt: skip
    """A framed window with a cross bar at (x, z), w wide and h high; at night it glows."""
    colors = pen.colors
    glowing = scene.time in ("night", "dusk")
    if glowing:
        u, y = pen.place(x + 0.5 * w, z + 0.5 * h)
        reach = 0.4 * pen.house.size
        view = pen.canvas.window(u - reach, u + reach, y - reach, y + reach)
        if view:
            size = np.float32((0.14 * pen.house.size) ** 2)
            dx, dy = (view.u - np.float32(u)) ** 2, (view.y - np.float32(y)) ** 2
            pen.canvas.add(
                view, np.float32(0.28) * np.exp(-dx / size) * np.exp(-dy / size), rgb(255, 170, 70)
            )
    if shutter is not None:
        for left in (x - 0.052, x + w + 0.006):
            tilt = skew * (left - x)
            pen.box(left, z - 0.004 + tilt, 0.046, h + 0.008, shutter, skew)
            if visible(0.016, pen.px) > 0:
                pen.box(left + 0.007, z + 0.008 + tilt, 0.032, h - 0.016, _louvres(pen, shutter, z), skew)
    pen.box(x - 0.006, z - 0.006, w + 0.012, h + 0.012, wood, skew)
    m = 0.012

    def glass(view: View) -> np.ndarray:
        gx, gz = pen.units(view)
        up = (gz - np.float32(z)) / np.float32(h)
        if glowing:  # a lamp inside, curtains at the sides
            side = np.abs((gx - np.float32(x)) / np.float32(w) - np.float32(0.5))
            inner = np.float32(1.06) - np.float32(0.2) * up - np.float32(0.5) * side
            return rgb(255, 208, 112) * inner[..., None]
        dark, bright = colors.tone(rgb(78, 112, 146), 0.7), lerp(colors.low, colors.middle, 0.4)
        slant = up + (gx - np.float32(x)) * np.float32(1.6)
        return lerp(dark, bright, np.float32(0.75) * smoothstep(0.42, 0.62, slant))

    pen.box(x + m, z + m, w - 2 * m, h - 2 * m, glass, skew)
    bar = 0.011
    pen.box(x + 0.5 * (w - bar), z, bar, h, wood * (0.85 if glowing else 1), skew)
    pen.box(x, z + 0.5 * (h - bar), w, bar, wood * (0.85 if glowing else 1), skew)
    pen.box(x - 0.014, z - 0.016, w + 0.028, 0.016, wood, skew)
    if scene.season == "winter":
        pen.box(x - 0.014, z - 0.002, w + 0.028, 0.012, colors.tone(SNOW, 0.85), skew)
    elif scene.season == "summer" and shutter is not None:
        pen.box(x - 0.012, z - 0.034, w + 0.024, 0.026, colors.tone(rgb(132, 88, 60), 0.6), skew)
        pen.box(x - 0.016, z - 0.014, w + 0.032, 0.028, _flower_box(pen, key), skew)


def _louvres(pen: _Pen, shutter: np.ndarray, z: float) -> Callable[[View], np.ndarray]:
    def paint(view: View) -> np.ndarray:
        _, up = pen.units(view)
        _, q = cells((up - np.float32(z)) / np.float32(0.012))
        shade = 1 + np.float32(visible(0.012, pen.px)) * (np.float32(0.4) * q - np.float32(0.28))
        return shutter * shade[..., None]

    return paint


def _flower_box(pen: _Pen, key: int) -> Callable[[View], np.ndarray]:
    """Leaves with red and white blossoms."""
    colors, step = pen.colors, 0.012

    def paint(view: View) -> np.ndarray:
        x, z = pen.units(view)
        (j, q) = cells(z / np.float32(step))
        i, p = cells(x / np.float32(step) + np.float32(0.5) * (j & 1))
        a, weight = hashed(i, j, key), np.float32(visible(step * 1.4, pen.px))
        dx = p - np.float32(0.36) - np.float32(0.28) * hashed(i, j, key + 20)
        dy = q - np.float32(0.36) - np.float32(0.28) * hashed(i, j, key + 30)
        petals = np.cos(np.arctan2(dy, dx) * np.float32(5) + a * np.float32(6))
        r, size = np.sqrt(dx * dx + dy * dy), np.float32(pen.px / step + 0.04)
        dot = np.clip(0.5 - (r - np.float32(0.3) - np.float32(0.07) * petals) / size, 0, 1) * (a < 0.6)
        dot = weight * dot + (1 - weight) * np.float32(0.28)
        leaf = leaves(x / np.float32(0.7 * step), z / np.float32(0.7 * step), pen.px / step * 1.4, key)
        green = colors.tone(rgb(82, 130, 66), np.clip(0.55 + weight * leaf, 0, 1))
        red = colors.tone(rgb(226, 74, 84), 0.95) * (1 - weight * np.float32(0.9) * (r * r)[..., None])
        red = np.where((weight * a > 0.4)[..., None], colors.tone(rgb(255, 244, 240), 0.95), red)
        return green + dot[..., None] * (red - green)

    return paint


def _chimney(pen: _Pen, colors: Palette, scene: Scene) -> None:
    brick, step = rgb(176, 98, 78), 0.02

    def bricks(view: View) -> np.ndarray:
        x, z = pen.units(view)
        rows = stones(x / np.float32(step), z / np.float32(step), pen.px / step, 31)
        return colors.tone(brick, np.clip(0.62 + visible(step, pen.px) * rows, 0, 1))

    pen.box(0.62, 0.6, 0.1, 0.26, bricks)
    pen.box(0.69, 0.6, 0.03, 0.26, colors.shaded(brick * 0.7), opacity=0.45)
    pen.box(0.608, 0.85, 0.124, 0.03, colors.tone(SNOW if scene.season == "winter" else brick * 0.82, 0.85))


def _smoke(canvas: Canvas, scene: Scene, colors: Palette, pen: _Pen) -> None:
    """A plume that widens, fades and drifts."""
    u, y = pen.place(0.67, 0.87)
    tall = 0.55 * pen.house.size
    view = canvas.window(u - 0.5 * tall, u + 0.5 * tall, y - tall, y + 0.01)
    if view is None:
        return
    t = np.clip((np.float32(y) - view.y) / np.float32(tall), 0, 1)
    bend = 0.25 * t**1.4 + 0.1 * t * fbm1(t * 0.5 + 7, scene.seed % 60013, 0.14, 0.001, 2)
    middle = (u - pen.house.side * tall * bend).astype(np.float32)
    width = np.float32(tall) * (np.float32(0.045) + np.float32(0.13) * t)
    puff = fbm2(view.u, view.y, 9, 0.16 * tall, view.px, 7, 0.6)
    x = (view.u - middle) / width + np.float32(0.5) * puff
    alpha = np.float32(0.6) * np.exp(-x * x) * smoothstep(1.0, 0.2, t) * smoothstep(0.0, 0.04, t)
    smoke = lerp(colors.low, colors.light, 0.6)
    shade = (np.float32(0.72) if scene.time == "night" else np.float32(0.98)) + np.float32(0.06) * puff
    canvas.mix(view, alpha, np.clip(smoke * (shade * np.ones_like(alpha))[..., None], 0, 1))
