"""The sky: gradient, sun or moon, stars, clouds and birds."""

from __future__ import annotations

import numpy as np

from .paint import Canvas, View, blobs, cover, fbm2, lerp, rgb, smoothstep
from .palette import Palette
from .scene import Scene


def paint_sky(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """Fill the picture down to a little below the horizon."""
    bottom = min(canvas.height, int((scene.horizon + 0.1) * canvas.height) + 1)
    y = canvas.y[:bottom, None] / np.float32(scene.horizon)
    column = lerp(colors.top, colors.middle, smoothstep(-0.1, 0.72, y))
    column += smoothstep(0.42, 1.02, y)[..., None] * (colors.low - column)
    canvas.img[:bottom] = column
    canvas.img[bottom:] = column[-1]
    view = canvas.window(-99, 99, 0, scene.horizon + 0.1)
    u, v = scene.sun
    square = (view.u - np.float32(u)) ** 2 + (view.y - np.float32(v)) ** 2
    low_sun = scene.time in ("dawn", "dusk")
    if scene.time == "night":
        _stars(canvas, scene, square)
    wide, strength = (0.09, 0.62) if low_sun else (0.022, 0.5)
    canvas.add(view, np.float32(strength) * np.exp(-square / np.float32(wide)), colors.glow)
    canvas.add(view, np.float32(0.55) * np.exp(-square / np.float32(wide / 9)), colors.glow)
    radius = {"dawn": 0.05, "day": 0.046, "dusk": 0.066, "night": 0.05}[scene.time]
    view = canvas.window(u - radius, u + radius, v - radius, v + radius)
    if view:
        _disc(canvas, view, scene, colors, radius)
    for cloud in scene.clouds:
        _cloud(canvas, scene, colors, *cloud)


def _disc(canvas: Canvas, view: View, scene: Scene, colors: Palette, radius: float) -> None:
    u, v = scene.sun
    x, y = view.u - np.float32(u), view.y - np.float32(v)
    alpha = cover(np.sqrt(x * x + y * y) - np.float32(radius), view.px)
    color = colors.disc
    if scene.time == "night":  # the moon's seas
        spots = np.zeros_like(alpha)
        for dx, dy, r in ((-0.3, -0.2, 0.32), (0.25, 0.1, 0.26), (-0.1, 0.45, 0.2), (0.35, -0.4, 0.14)):
            gap = np.sqrt((x - radius * dx) ** 2 + (y - radius * dy) ** 2) - radius * r
            spots = np.maximum(spots, cover(gap, view.px, 0.012))
        spots = spots * (1 + np.float32(0.5) * fbm2(view.u, view.y, 31, 0.02, view.px))
        color = lerp(colors.disc, rgb(206, 206, 200), 0.7 * np.clip(spots, 0, 1))
    canvas.mix(view, alpha, color)


def _stars(canvas: Canvas, scene: Scene, square: np.ndarray) -> None:
    """Stars keep their light at every resolution: spread over a pixel where they are smaller."""
    rng = np.random.default_rng([scene.seed, 11])
    count, px = 2600, canvas.px
    u, y = rng.uniform(-1.6, 1.6, count), rng.uniform(0, 1, count) ** 1.25 * (scene.horizon - 0.04)
    size = 0.0007 + 0.0012 * rng.uniform(0, 1, count) ** 3
    size[:36] = rng.uniform(0.0024, 0.0038, 36)
    warm = rng.uniform(0, 1, count)
    spread = np.maximum(size, 0.55 * px)
    light = (size / spread) ** 2
    keep = (light > 0.02) & (np.hypot(u - scene.sun[0], y - scene.sun[1]) > 0.09)
    reach = int(np.ceil(2.5 * max(0.0038 / px, 0.55)))
    offsets = np.arange(-reach, reach + 1)
    for big in (True, False):
        pick = keep & ((np.arange(count) < 36) == big)
        near = offsets if big else offsets[np.abs(offsets) <= max(2, int(np.ceil(2.5 * 0.0019 / px)))]
        cols = np.floor(u[pick] / px + canvas.width / 2).astype(int)[:, None, None] + near[None, None, :]
        rows = np.floor(y[pick] / px).astype(int)[:, None, None] + near[None, :, None]
        dx = (cols + 0.5 - canvas.width / 2) * px - u[pick][:, None, None]
        dy = (rows + 0.5) * px - y[pick][:, None, None]
        glow = light[pick][:, None, None] * np.exp(
            -(dx * dx + dy * dy) / (2 * (0.8 * spread[pick][:, None, None]) ** 2)
        )
        inside = (cols >= 0) & (cols < canvas.width) & (rows >= 0) & (rows < square.shape[0]) & (glow > 0.004)
        where = np.nonzero(inside)
        hue = lerp(rgb(200, 218, 255), rgb(255, 240, 214), warm[pick])[where[0]]
        r, c = (np.broadcast_to(a, inside.shape)[where] for a in (rows, cols))
        np.add.at(canvas.img, (r, c), (0.95 * glow[where][:, None] * hue).astype(np.float32))
    np.minimum(canvas.img, 1, out=canvas.img)


def _cloud(canvas: Canvas, scene: Scene, colors: Palette, u: float, y: float, width: float, key: int) -> None:
    """A heap of round lumps on a flat base, lit from the sun's side."""
    rng = np.random.default_rng(key)
    count = 8
    across = np.linspace(-0.36, 0.36, count) + rng.uniform(-0.04, 0.04, count)
    summit = rng.uniform(-0.14, 0.14)
    r = (0.075 + 0.13 * np.exp(-(((across - summit) / 0.2) ** 2))) * rng.uniform(0.8, 1.15, count)
    rounds = np.stack([across * width + u, y - r * width * rng.uniform(0.45, 0.9, count), r * width], 1)
    view = canvas.window(u - 0.6 * width, u + 0.6 * width, y - 0.5 * width, y + 0.05 * width)
    if view is None:
        return
    side = 0.6 if scene.sun[0] > u else -0.6
    gap, shade = blobs(view.u, view.y, rounds, (side, -0.8))
    puff = fbm2(view.u, view.y, key, 0.05, view.px, 6, 0.55)
    gap = gap + np.float32(0.008) * puff
    base = (view.y - np.float32(y + 0.006)) * np.float32(0.6)
    alpha = np.float32(0.92) * smoothstep(0.006, -0.012, gap) * smoothstep(0.012, -0.016, base)
    rise = (np.float32(y) - view.y) / np.float32(0.22 * width)
    tone = np.clip(0.46 + 0.34 * shade + 0.3 * (rise - 0.5) + 0.1 * puff, 0, 1).astype(np.float32)
    bright = lerp(colors.disc, colors.low, 0.22)
    if scene.time in ("day", "night"):
        bright = rgb(252, 252, 250) if scene.time == "day" else rgb(112, 130, 176)
    dark = lerp(lerp(colors.middle, colors.low, 0.35), colors.dim, 0.35)
    canvas.mix(view, alpha, lerp(dark, bright, tone))


def paint_birds(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """A few birds away from the sun, by daylight."""
    rng = np.random.default_rng([scene.seed, 12])
    if scene.time == "night" or rng.uniform() < 0.35:
        return
    u0, y0 = -np.sign(scene.sun[0]) * rng.uniform(0.1, 0.3), rng.uniform(0.14, 0.26)
    for _ in range(int(rng.integers(3, 6))):
        u, y = u0 + rng.uniform(-0.12, 0.12), y0 + rng.uniform(-0.06, 0.06)
        s, lift = rng.uniform(0.014, 0.022), rng.uniform(0.8, 1.2)
        view = canvas.window(u - 1.3 * s, u + 1.3 * s, y - s, y + s)
        if view is None:
            continue
        x = np.abs(view.u - np.float32(u)) / s
        wing = lift * (0.42 - 1.15 * (x - 0.62) ** 2) * s  # each wing an arch
        thick = np.maximum(0.0, 0.105 * (1.12 - x)) * s + 0.0006
        gap = np.maximum(np.abs(np.float32(y) - view.y - wing) - thick, (x - 1.12) * s)
        canvas.mix(view, np.float32(0.85) * cover(gap, view.px), lerp(colors.dim * 0.45, colors.middle, 0.15))
