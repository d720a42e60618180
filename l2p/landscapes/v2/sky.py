"""The sky: gradient, sun or moon, stars, clouds and birds."""

from __future__ import annotations

import numpy as np

from ..paint import Canvas, View, blobs, cover, fbm2, lerp, rgb, smoothstep
from .palette import Palette
from .scene import Scene

RADIUS = {"dawn": 0.055, "day": 0.05, "dusk": 0.072, "night": 0.062}  # of the sun or the moon


def paint_sky(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """Fill the picture down to a little below the horizon."""
    view = canvas.window(-99, 99, 0, 1)
    if view is None:
        return
    y = np.minimum(view.y / np.float32(scene.horizon), np.float32(1.2))
    column = lerp(colors.top, colors.middle, smoothstep(-0.1, 0.72, y))
    canvas.img[view.rows] = lerp(column, np.broadcast_to(colors.low, column.shape), smoothstep(0.4, 1.02, y))
    u, v = scene.sun
    view = canvas.window(-99, 99, 0, scene.horizon + 0.1)
    if view is None:
        return
    if scene.time == "night":
        _stars(canvas, scene)
    # A glow is a product of a row and a column.
    wide, strength = (0.1, 0.6) if scene.time in ("dawn", "dusk") else (0.03, 0.45)
    dx, dy = (view.u - np.float32(u)) ** 2, (view.y - np.float32(v)) ** 2
    light = np.float32(strength) * np.exp(-dy / np.float32(wide)) * np.exp(-dx / np.float32(wide))
    near = np.float32(wide / 10)
    light += np.float32(0.5) * np.exp(-dy / near) * np.exp(-dx / near)
    canvas.add(view, np.minimum(light, 1), colors.glow)
    radius = RADIUS[scene.time]
    view = canvas.window(u - radius, u + radius, v - radius, v + radius)
    if view:
        _disc(canvas, view, scene, colors, radius)
    for cloud in scene.clouds:
        _cloud(canvas, scene, colors, *cloud)


def _disc(canvas: Canvas, view: View, scene: Scene, colors: Palette, radius: float) -> None:
    u, v = scene.sun
    x, y = view.u - np.float32(u), view.y - np.float32(v)
    r = np.sqrt(x * x + y * y)
    color = colors.disc
    if scene.time == "night":  # the moon's seas and craters
        spots = np.zeros_like(r)
        for dx, dy, size in ((-0.3, -0.2, 0.34), (0.25, 0.1, 0.27), (-0.1, 0.45, 0.21), (0.35, -0.4, 0.15)):
            gap = np.sqrt((x - radius * dx) ** 2 + (y - radius * dy) ** 2) - radius * size
            spots = np.maximum(spots, cover(gap, view.px, 0.014))
        grain = fbm2(view.u - np.float32(u), view.y, 31, 0.024, view.px, 7, 0.6)
        spots = np.clip(spots * (1 + np.float32(0.5) * grain) + np.float32(0.12) * grain, 0, 1)
        color = lerp(colors.disc, rgb(196, 198, 200), np.float32(0.7) * spots)
    canvas.mix(view, cover(r - np.float32(radius), view.px), color)


def _stars(canvas: Canvas, scene: Scene) -> None:
    """Stars keep their light at every resolution: spread over a pixel where they are smaller."""
    rng = np.random.default_rng([scene.seed, 11])
    large, count, px = 90, 420, canvas.px
    u = rng.uniform(-1.6, 1.6, count)
    y = rng.uniform(0, 1, count) ** 1.25 * (scene.horizon - 0.04)
    size = np.concatenate(
        [rng.uniform(0.0024, 0.004, large), 0.0009 + 0.0009 * rng.uniform(0, 1, count - large) ** 3]
    )
    warm = rng.uniform(0, 1, count)
    spread = np.maximum(size, 0.55 * px)
    light = (size / spread) ** 2
    keep = (light > 0.03) & (np.abs(u) < 0.5 * canvas.width * px + 0.01)
    keep &= np.hypot(u - scene.sun[0], y - scene.sun[1]) > 0.1
    for pick, widest in (
        (keep & (np.arange(count) < large), 0.004),
        (keep & (np.arange(count) >= large), 0.0018),
    ):
        hue = lerp(rgb(200, 218, 255), rgb(255, 236, 206), warm[pick][None])[0]
        reach = 2.2 * max(widest, 0.55 * px)
        for a, b, s, strength, color in zip(u[pick], y[pick], spread[pick], light[pick], hue, strict=True):
            view = canvas.window(a - reach, a + reach, b - reach, b + reach)
            if view is None:
                continue
            scale = np.float32(-0.78 / s**2)
            glow = np.exp(scale * (view.y - np.float32(b)) ** 2) * np.exp(
                scale * (view.u - np.float32(a)) ** 2
            )
            canvas.add(view, np.float32(0.95 * strength) * glow, color.astype(np.float32))


def _cloud(canvas: Canvas, scene: Scene, colors: Palette, u: float, y: float, width: float, key: int) -> None:
    """A heap of round lumps on a flat base, lit from the sun's side."""
    rng = np.random.default_rng(key)
    count = 9
    across = np.linspace(-0.4, 0.4, count) + rng.uniform(-0.03, 0.03, count)
    summit = rng.uniform(-0.16, 0.16)
    r = (0.07 + 0.12 * np.exp(-(((across - summit) / 0.2) ** 2))) * rng.uniform(0.8, 1.15, count)
    rounds = np.stack([across * width + u, y - r * width * rng.uniform(0.4, 0.9, count), r * width], 1)
    view = canvas.window(u - 0.56 * width, u + 0.56 * width, y - 0.36 * width, y + 0.05 * width)
    if view is None:
        return
    side = 0.6 if scene.sun[0] > u else -0.6
    puff = fbm2(view.u, view.y, key, 0.07, view.px, 8, 0.56)
    warp = np.float32(0.012) * puff
    gap, shade = blobs(view.u + warp, view.y - warp, rounds, (side, -0.8))
    gap = gap + np.float32(0.007) * puff
    base = (view.y - np.float32(y + 0.004)) * np.float32(0.5) + np.float32(0.006) * puff
    soft = np.float32(0.012) + np.float32(0.012) * np.clip(
        (view.y - np.float32(y - 0.08)) / np.float32(0.08), 0, 1
    )
    alpha = np.float32(0.95) * smoothstep(0.004, -soft, gap) * smoothstep(0.014, -0.018, base)
    rise = (np.float32(y) - view.y) / np.float32(0.22 * width)
    tone = np.clip(0.5 + 0.34 * shade + 0.34 * (rise - 0.5) + 0.16 * puff, 0, 1).astype(np.float32)
    bright = lerp(colors.disc, colors.low, 0.18)
    if scene.time in ("day", "night"):
        bright = rgb(254, 253, 250) if scene.time == "day" else rgb(124, 144, 190)
    dark = lerp(lerp(colors.middle, colors.low, 0.35), colors.dim, 0.35)
    canvas.mix(view, alpha, lerp(dark, bright, tone))


def paint_birds(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """A flock on the side away from the sun, by daylight."""
    rng = np.random.default_rng([scene.seed, 12])
    if scene.time == "night" or rng.uniform() < 0.35:
        return
    u0, y0 = scene.side * rng.uniform(0.08, 0.26), rng.uniform(0.12, 0.2)
    for k in range(int(rng.integers(3, 6))):
        u, y = (
            u0 + (k % 3 - 1) * 0.085 + rng.uniform(-0.02, 0.02),
            y0 + (k // 3) * 0.055 + rng.uniform(-0.03, 0.02),
        )
        s, lift = rng.uniform(0.019, 0.027), rng.uniform(0.8, 1.2)
        view = canvas.window(u - 1.3 * s, u + 1.3 * s, y - s, y + s)
        if view is None:
            continue
        x = np.abs(view.u - np.float32(u)) / s
        wing = lift * (0.42 - 1.15 * (x - 0.62) ** 2) * s  # each wing an arch
        thick = np.maximum(0.0, 0.1 * (1.12 - x)) * s + 0.0006
        gap = np.maximum(np.abs(np.float32(y) - view.y - wing) - thick, (x - 1.12) * s)
        body = (
            np.hypot((view.u - np.float32(u)) / 0.1, (view.y - np.float32(y + 0.02 * s)) / 0.16) * 0.1
            - 0.1 * s
        )
        gap = np.minimum(gap, body)
        canvas.mix(view, np.float32(0.9) * cover(gap, view.px), lerp(colors.dim * 0.4, colors.middle, 0.12))
