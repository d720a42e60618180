"""The land: two hills, the meadow or the snow, a path, flowers and boulders."""

from __future__ import annotations

import numpy as np

from ..paint import Canvas, View, cover, fbm1, lerp, noise1, noise2, rgb, smoothstep, visible
from .palette import SNOW, Palette
from .scene import Scene
from .texture import cells, grass, hashed

TUFT, BLADE, FINE = 0.09, 0.026, 0.009  # widths of blades where the depth is one picture height


def paint_land(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """Three skylines of land, the last one reaching the foreground."""
    key = scene.seed % 65003
    for k in range(3):
        line = _rolling(scene, canvas.u, k) + 0.002 * fbm1(canvas.u, key + k, 0.02, canvas.px, 8, 0.6)
        top = float(line.min())
        view = canvas.window(-99, 99, top, 1.0 if k == 2 else scene.horizon + 0.13)
        if view is None:
            continue
        depth = view.y - line[None]
        if k < 2:
            body = _hill(canvas, scene, colors, view, depth, k)
        else:
            body = _meadow(canvas, scene, colors, view)
        canvas.mix(view, cover(-depth, view.px), body)
        if scene.time in ("dawn", "dusk"):
            haze = 0.4 if scene.time == "dawn" else 0.16
            low = canvas.window(-99, 99, top - 0.02, top + 0.12)
            if low is None:
                continue
            drift = low.y - np.float32(top + 0.05) + np.float32(0.018) * noise1(low.u / 0.3 + 3 * k, key)
            canvas.mix(low, np.float32(haze) * np.exp(-((drift / np.float32(0.024)) ** 2)), colors.haze)


def _rolling(scene: Scene, u: np.ndarray, k: int) -> np.ndarray:
    key = scene.seed % 65003
    if k == 0:
        return scene.horizon - 0.01 + 0.045 * noise1(u / 0.5 + 5, key) + 0.01 * noise1(u / 0.16, key + 1)
    if k == 1:
        return scene.horizon + 0.036 + 0.032 * noise1(u / 0.55 + 5, key + 2)
    return scene.horizon + 0.074 + 0.016 * noise1(u / 0.6, key + 3)


def _hill(canvas: Canvas, scene: Scene, colors: Palette, view: View, depth: np.ndarray, k: int) -> np.ndarray:
    slope = (_rolling(scene, canvas.u + 0.01, k) - _rolling(scene, canvas.u - 0.01, k)) / np.float32(0.02)
    facing = np.clip(0.72 + 0.9 * float(np.sign(scene.sun[0])) * slope, 0.35, 1)[None].astype(np.float32)
    field = noise2(view.u * 7, (view.y - np.float32(scene.horizon)) * 40, scene.seed % 60013 + k)
    light = facing * smoothstep(0.16, -0.02, depth) + np.float32(0.06) + np.float32(0.07) * field
    weight = visible(0.008, view.px) * (0.03 if scene.season == "winter" else 0.1)
    if weight > 0:
        light = light + np.float32(weight) * noise2(view.u * 160, view.y * 420, scene.seed % 60017 + k)
    green = lerp(colors.far, colors.pine, (0.3 - 0.12 * k) if scene.season != "winter" else 0.12)
    body = colors.tone(green, light)
    return body + np.float32(0.5 - 0.24 * k) * (colors.haze - body)


def ground_depth(scene: Scene, y: np.ndarray | float) -> np.ndarray | float:
    """How far below its vanishing line a point of the ground lies: things on it are as large as this says."""
    return np.maximum(y - np.float32(scene.horizon + 0.005), np.float32(0.02))


def ground_cells(u: np.ndarray, depth: np.ndarray, count: float) -> tuple[np.ndarray, ...]:
    """Cells in rows across the ground, ``count`` to a length equal to their depth: column, place in it, row, place in it.

    The cells of a row have one size, so that what stands in them is upright and not sheared towards the vanishing point.
    """
    j, q = cells(np.log(depth) * np.float32(count))
    i, p = cells(u * (np.float32(count) * np.exp((j + np.float32(0.5)) / np.float32(-count))))
    return i, p, j, q


def _meadow(canvas: Canvas, scene: Scene, colors: Palette, view: View) -> np.ndarray:
    key, px = scene.seed % 64007, view.px
    depth = ground_depth(scene, view.y)
    t = np.clip(depth / np.float32(0.995 - scene.horizon), 0, 1)
    across, away = view.u / depth, np.log(depth)
    patch = noise2(across * np.float32(0.4), away * np.float32(2.2), key)
    rolling = noise2(across * np.float32(0.17), away * np.float32(1.6) + np.float32(0.3) * patch, key + 9)
    light = np.float32(0.9) - np.float32(0.34) * t**1.3 + np.float32(0.1) * patch + np.float32(0.12) * rolling
    if scene.season == "winter":
        return _snow(
            scene, colors, view, depth, across, away, light + np.float32(0.08) + np.float32(0.16) * t
        )
    wind = np.float32(0.5) + np.float32(1.4) * noise1(view.u * 3, key + 5)
    for n, (blade, gain) in enumerate(((TUFT, 0.15), (BLADE, 0.2), (FINE, 0.18))):
        weight = visible(np.float32(blade) * depth, px)
        start = int(np.argmax(weight[:, 0] > 0))
        if weight[-1, 0] > 0:
            field = grass(view.u, depth[start:], px, key + 31 * n, blade, wind * np.float32(1 + 0.4 * n))
            light[start:] += np.float32(gain) * weight[start:] * field
    ground = lerp(colors.far, colors.near, np.clip(t * np.float32(1.2) + np.float32(0.22) * patch, 0, 1))
    ground = ground * (1 + np.float32(0.1) * rolling[..., None] * rgb(255, 80, -200))
    body = colors.tone(ground, np.clip(light, 0, 1.1))
    _flowers(scene, colors, view, depth, body)
    return body


def _snow(scene: Scene, colors: Palette, view: View, depth, across, away, light) -> np.ndarray:
    """Drifts with soft crests; at close range a grain, and glints."""
    key, px = scene.seed % 64007, view.px
    sun = float(np.sign(scene.sun[0]))
    for n, (count, gain) in enumerate(((1.1, 0.12), (2.6, 0.06), (9.0, 0.025), (40.0, 0.02), (130.0, 0.03))):
        weight = visible(depth / np.float32(count), px) * np.float32(gain)
        if weight[-1, 0] > 0:
            x = across * np.float32(count) + np.float32(sun * 0.35)
            light = light + weight * noise2(x, away * np.float32(count * 2.4), key + 17 * n)
    body = colors.tone(lerp(colors.far, colors.near, np.clip(light, 0, 1)), np.clip(light, 0, 1))
    weight = visible(depth / np.float32(55), px)
    if weight[-1, 0] > 0:
        start = int(np.argmax(weight[:, 0] > 0))
        i, p, j, q = ground_cells(view.u, depth[start:], 120.0)
        here = hashed(i, j, 3) > 0.9
        dx = p - np.float32(0.25) - np.float32(0.5) * hashed(i, j, 1)
        dy = q - np.float32(0.25) - np.float32(0.5) * hashed(i, j, 2)
        glint = np.exp(-(dx * dx + dy * dy) * np.float32(90)) * here * weight[start:]
        part = body[start:]
        part += np.float32(0.8) * glint[..., None] * (lerp(SNOW, colors.disc, 0.3) - part)
    return body


def _flowers(scene: Scene, colors: Palette, view: View, depth: np.ndarray, body: np.ndarray) -> None:
    """Flowers in drifts (fallen leaves in autumn), one to a cell of the ground where the noise has it."""
    autumn = scene.season == "autumn"
    hues = ((rgb(214, 96, 44), rgb(240, 176, 60), rgb(170, 66, 40)) if autumn else
            (rgb(252, 248, 240), rgb(250, 208, 70), rgb(236, 112, 140)))  # fmt: skip
    count = 24.0
    weight = visible(depth / np.float32(count * 1.6), view.px)[:, 0]
    if weight[-1] == 0:
        return
    start = int(np.argmax(weight > 0))
    d = depth[start:]
    drift = noise2(view.u / d * np.float32(0.9), np.log(d) * np.float32(3), scene.seed % 60029 + 40)
    i, p, j, q = ground_cells(view.u, d, count)
    there = hashed(i, j, 11) * np.float32(1.2) + np.float32(0.1) < smoothstep(0.0, 0.5, drift)
    rows, columns = np.nonzero(there)
    i, p, j, q = i[rows, columns], p[rows, columns], j[rows, 0], q[rows, 0]
    radius = np.float32(0.14) + np.float32(0.1) * hashed(i, j, 12)
    dx = p - np.float32(0.3) - np.float32(0.4) * hashed(i, j, 13)
    dy = (q - np.float32(0.3) - np.float32(0.4) * hashed(i, j, 14)) * np.float32(1.25)
    r, size = np.sqrt(dx * dx + dy * dy), view.px * np.float32(count) / d[rows, 0]
    turn = hashed(i, j, 15) * np.float32(6.28)
    if autumn:
        stretch = np.abs(dx * np.cos(turn) + dy * np.sin(turn))
        outline = radius * (np.float32(1.1) - np.float32(2.2) * stretch)
    else:
        petals = np.cos(np.arctan2(dy, dx) * np.float32(6) + turn)
        outline = radius * (np.float32(0.86) + np.float32(0.2) * petals)
    alpha = np.clip(0.5 - (r - outline) / size, 0, 1) * weight[start:][rows] * np.float32(0.95)
    which = (hashed(i, j, 16) * 3).astype(int)
    color = colors.tone(np.stack(hues), 0.92)[which] * (1 - np.float32(1.1) * (r * r / radius)[:, None])
    if not autumn:
        heart = np.clip(0.5 - (r - np.float32(0.36) * radius) / size, 0, 1)[:, None]
        color = color + heart * (colors.tone(rgb(246, 196, 60), 0.9) - color)
    part = body[start:]
    part[rows, columns] += alpha[:, None] * (color - part[rows, columns])


def paint_path(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """A trodden path from the door to the foreground, where there is a house and no water in its way."""
    home = scene.home
    if home is None or scene.water != "none":
        return
    view = canvas.window(-99, 99, home.y, 1.0)
    if view is None:
        return
    key, px = scene.seed % 61001, view.px
    door = home.u + home.side * (0.5 - 0.12) * home.size
    end = -0.1 * scene.side
    q = np.clip((view.y - np.float32(home.y)) / np.float32(1 - home.y), 0, 1)
    depth = ground_depth(scene, view.y)
    middle = door + (end - door) * q**1.3 + 0.05 * home.side * np.sin(q * np.float32(4.2)) * (0.3 + q)
    half = np.float32(0.055 * home.size / 0.38) * (np.float32(0.75) + np.float32(1.7) * q)
    ragged = noise2(view.u / depth * 3, np.log(depth) * 9, key) + 0.6 * noise2(
        view.u / depth * 11, np.log(depth) * 27, key + 1
    )
    gap = np.abs(view.u - middle.astype(np.float32)) - half * (1 + np.float32(0.12) * ragged)
    alpha = np.float32(0.9) * smoothstep(0.012, -0.012, gap / (np.float32(0.4) + q))
    winter = scene.season == "winter"
    light = np.float32(0.62) - np.float32(0.16) * q + np.float32(0.06) * ragged
    scale = np.float32(26)
    weight = visible(depth / scale, px)
    if weight[-1, 0] > 0:
        i, p, j, s = ground_cells(view.u, depth, float(scale))
        radius = np.float32(0.12) + np.float32(0.2) * hashed(i, j, 21)
        dx = p - np.float32(0.32) - np.float32(0.36) * hashed(i, j, 23)
        dy = s - np.float32(0.32) - np.float32(0.36) * hashed(i, j, 24)
        r = np.sqrt(dx * dx + dy * dy)
        pebble = np.clip(0.5 - (r - radius) / (px * scale / depth), 0, 1)
        tone = np.float32(0.4) * hashed(i, j, 22) - np.float32(0.06) - np.float32(0.8) * dy
        light = light + weight * (pebble * tone - np.float32(0.07)) * np.float32(0.3 if winter else 1)
    earth = rgb(214, 222, 238) if winter else rgb(206, 178, 132)
    canvas.mix(view, alpha, colors.tone(earth, np.clip(light, 0, 1)))
