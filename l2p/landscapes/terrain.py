"""The land: mountains, hills, the meadow, and the water with its mirror image."""

from __future__ import annotations

import numpy as np

from .paint import Canvas, View, cover, fbm1, fbm2, lerp, noise1, noise2, rgb, smoothstep, visible
from .palette import SNOW, Palette
from .scene import Peak, Scene

_WATERS = {
    "dawn": rgb(146, 202, 216),
    "day": rgb(66, 150, 204),
    "dusk": rgb(178, 128, 186),
    "night": rgb(38, 68, 134),
}


def paint_mountains(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """A pale far range, then the peaks from the highest to the lowest."""
    if not scene.peaks:
        return
    key = scene.seed % 65521
    ridge = scene.horizon - 0.13 + 0.07 * fbm1(canvas.u + 9, key, 0.35, canvas.px)
    view = canvas.window(-99, 99, scene.horizon - 0.3, scene.horizon + 0.08)
    color = lerp(colors.tone(colors.rock, 0.5), colors.haze, 0.68)
    canvas.mix(view, cover(ridge[None] - view.y, view.px), color)
    for peak in scene.peaks:
        _peak(canvas, scene, colors, peak)


def _peak(canvas: Canvas, scene: Scene, colors: Palette, peak: Peak) -> None:
    foot = scene.horizon + 0.06
    tall = foot - peak.y
    view = canvas.window(peak.u - tall / peak.left, peak.u + tall / peak.right, peak.y - 0.01, foot)
    if view is None:
        return
    x = view.u - np.float32(peak.u)
    jag = 0.028 * fbm1(view.u, peak.key, 0.11, view.px) * np.clip(np.abs(x) * 14, 0.12, 1)
    ridge = np.float32(peak.y) + np.where(x < 0, -x * peak.left, x * peak.right).astype(np.float32) + jag
    depth = view.y - ridge  # below the skyline
    alpha = cover(-depth, view.px)
    fall = view.y - np.float32(peak.y)
    crest = 0.06 * fbm1(fall + 3, peak.key + 17, 0.12, view.px) * smoothstep(0, 0.12, fall) + 0.1 * fall
    sunward = 1.0 if scene.sun[0] > peak.u else -1.0
    spur = fbm2(view.u * 1.6 + fall * np.float32(0.9 * sunward), fall * 0.5, peak.key, 0.1, view.px, 6, 0.6)
    edge = max(0.0035, 0.7 * view.px)
    face = smoothstep(-edge, edge, (x + sunward * crest) * sunward)
    light = np.clip(0.16 + 0.62 * face + 0.2 * spur, 0, 1).astype(np.float32)
    body = colors.tone(colors.rock, light)
    line = {"summer": 0.075, "autumn": 0.1, "winter": 0.2}[scene.season] * (tall / 0.36) ** 1.5
    zig = 0.035 * fbm1(view.u, peak.key + 5, 0.07, view.px, 7, 0.55)
    snow = smoothstep(edge, -edge, fall + zig - np.float32(line))
    snowy = colors.tone(SNOW, np.clip(light + 0.12, 0, 1))
    if scene.time in ("dawn", "dusk"):  # the low sun colours the snow
        snowy = lerp(snowy, snowy * lerp(colors.glow, SNOW, 0.35), face * np.float32(0.5))
    body += snow[..., None] * (snowy - body)
    mist = np.float32(0.16) + np.float32(0.62) * smoothstep(0.0, 1.0, fall / np.float32(tall)) ** 1.5
    canvas.mix(view, alpha, body + mist[..., None] * (colors.haze - body))


def hill_lines(scene: Scene, u: np.ndarray, px: float) -> list[np.ndarray]:
    """The skylines y(u) of the far hill, the middle hill and the meadow, smooth but for tufts of grass."""
    key = scene.seed % 65003
    return [_rolling(scene, u, k) + 0.0016 * fbm1(u, key + k, 0.02, px, 6, 0.6) for k in range(3)]


def _rolling(scene: Scene, u: np.ndarray, k: int) -> np.ndarray:
    key = scene.seed % 65003
    if k == 0:
        return scene.horizon - 0.01 + 0.04 * noise1(u / 0.4 + 5, key) + 0.01 * noise1(u / 0.16, key + 1)
    if k == 1:
        return scene.horizon + 0.042 + 0.03 * noise1(u / 0.45 + 5, key + 2)
    return scene.horizon + 0.078 + 0.014 * noise1(u / 0.6, key + 3)


def paint_land(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """Three skylines of land, the last one reaching the foreground."""
    lines = hill_lines(scene, canvas.u, canvas.px)
    key = scene.seed % 64007
    for k, line in enumerate(lines):
        top = float(line.min())
        end = 1.0 if k == 2 else scene.horizon + 0.14
        view = canvas.window(-99, 99, top, end)
        depth = view.y - line[None]
        slope = (_rolling(scene, canvas.u + 0.01, k) - _rolling(scene, canvas.u - 0.01, k)) / np.float32(0.02)
        facing = np.clip(0.72 + 0.9 * float(np.sign(scene.sun[0])) * slope, 0.35, 1)[None].astype(np.float32)
        if k < 2:
            light = facing * smoothstep(0.16, -0.02, depth) + np.float32(0.06)
            body = colors.tone(
                lerp(colors.far, colors.pine, 0.3 - 0.12 * k if scene.season != "winter" else 0.12), light
            )
            body = lerp(body, colors.haze, 0.52 - 0.24 * k)
        else:
            body = _meadow(canvas, scene, colors, view, depth, key)
        canvas.mix(view, cover(-depth, view.px), body)
        if scene.time in ("dawn", "dusk"):
            haze = 0.42 if scene.time == "dawn" else 0.16
            low = canvas.window(-99, 99, top - 0.02, top + 0.12)
            drift = low.y - np.float32(top + 0.05) + np.float32(0.018) * noise1(low.u / 0.3 + 3 * k, key)
            canvas.mix(low, np.float32(haze) * np.exp(-((drift / np.float32(0.024)) ** 2)), colors.haze)


def _meadow(
    canvas: Canvas, scene: Scene, colors: Palette, view: View, depth: np.ndarray, key: int
) -> np.ndarray:
    t = np.clip((view.y - np.float32(scene.horizon + 0.06)) / np.float32(0.94 - scene.horizon), 0, 1)
    z = np.float32(1) / (np.float32(0.12) + t)
    patch = noise2(view.u * z * 0.9, z * 2.2, key)
    light = np.float32(0.82) - np.float32(0.34) * t**1.4 + np.float32(0.12) * patch
    rough = 0.35 if scene.season == "winter" else 1.0  # snow lies smooth
    for n, (count, gain) in enumerate(((12.0, 0.05), (28.0, 0.08), (66.0, 0.12), (150.0, 0.16))):
        weight = visible((0.12 + t) / count, view.px) * np.float32(gain * rough)
        start = int(np.argmax(weight[:, 0] > 0)) if weight.any() else len(weight)
        if start < len(weight):  # blades of grass: narrow across, long in depth
            zz = z[start:]
            light[start:] += weight[start:] * noise2(
                view.u * zz * count, np.log(zz) * count * 0.42, key + 31 * n
            )
    for n, (start, tall) in enumerate(((0.16, 0.03), (0.36, 0.05), (0.66, 0.06))):  # folds of the ground
        fold = np.float32(start) + np.float32(tall) * noise1(
            view.u / np.float32(0.35 + 0.2 * n), key + 101 + n
        )
        below = t - fold
        light += (
            smoothstep(-0.01, 0.012, below) * np.exp(-np.maximum(below, 0) * np.float32(7)) * np.float32(0.2)
        )
    ground = lerp(colors.far, colors.near, np.clip(t * 1.25 + 0.1 * patch, 0, 1))
    body = colors.tone(ground, np.clip(light, 0, 1))
    if scene.season != "winter":
        _flowers(scene, colors, view, t, z, body)
    return body


def _flowers(
    scene: Scene, colors: Palette, view: View, t: np.ndarray, z: np.ndarray, body: np.ndarray
) -> None:
    """Dots of flowers (fallen leaves in autumn), one to a cell of the ground where the noise has it."""
    hues = {"summer": (rgb(250, 246, 236), rgb(250, 206, 70), rgb(232, 108, 132)),
            "autumn": (rgb(214, 96, 44), rgb(240, 176, 60), rgb(170, 66, 40))}[scene.season]  # fmt: skip
    weight = visible((0.12 + t) / 50, view.px)[:, 0]
    if not weight.any():
        return
    start = int(np.argmax(weight > 0))
    zz = z[start:]
    rng = np.random.default_rng([scene.seed, 13])
    cells = rng.uniform(0, 1, (4, 128, 128)).astype(np.float32)
    x, d = view.u * zz * 34, np.log(zz) * np.float32(40)
    i, j = np.floor(x).astype(int) % 128, np.floor(d).astype(int) % 128
    patch = noise2(view.u * zz * 1.6, np.log(zz) * 3, scene.seed % 60029 + 40)
    radius = np.float32(0.13) + np.float32(0.13) * cells[3][j, i]
    dx = x - np.floor(x) - 0.3 - 0.4 * cells[0][j, i]
    dy = d - np.floor(d) - 0.3 - 0.4 * cells[1][j, i]
    gap = np.sqrt(dx * dx + dy * dy) - radius
    there = smoothstep(0.05, 0.4, patch) > cells[2][j, i] * 1.1 + 0.12
    alpha = cover(gap, view.px * zz * 34) * there * weight[start:, None] * np.float32(0.9)
    hue = colors.tone(np.stack(hues), 0.9)[(cells[0] * 997).astype(int)[j, i] % 3]
    part = body[start:]
    part += alpha[..., None].astype(np.float32) * (hue - part)


def paint_water(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """The lake or the river: the mirror image of what is painted so far, ripples and glitter."""
    body = scene.lake or scene.river
    if body is None:
        return
    top = scene.lake.y - scene.lake.b if scene.lake else scene.river.y
    end = min(1.0, scene.lake.y + scene.lake.b + 0.03) if scene.lake else 1.0
    view = canvas.window(-99, 99, top - 0.02, end)
    key, px = scene.seed % 63001, view.px
    t = np.maximum(view.y - np.float32(top - 0.03), np.float32(0.01))
    gap = body.distance(view.u, view.y).astype(np.float32)
    gap += np.float32(0.006) * fbm2(view.u, view.y * 2.5, key, 0.07, px, 6)
    shore = cover(gap - np.float32(0.006) - np.float32(0.018) * t, px)
    lit = lerp(colors.shaded(colors.bank), colors.lit(colors.bank), 0.62)
    canvas.mix(view, shore * np.float32(0.9), lit)
    depth = np.log(t) * np.float32(9)
    wave = noise2(view.u * 5, depth * 2, key + 1) * np.float32(0.3)
    for n in range(5):  # ripples flatten with distance, so that each row carries its own
        weight = visible(t / (9 * 2.6 * 2.0**n), px) * np.float32(0.55 * 0.82**n)
        start = int(np.argmax(weight[:, 0] > 0)) if weight.any() else len(weight)
        if start < len(weight):
            x = view.u / (t[start:] + 0.12) * (2.2 * 2.0**n)
            wave[start:] += weight[start:] * noise2(x, depth[start:] * (2.6 * 2.0**n), key + 7 * n)
    mirror_line = top if scene.lake else scene.horizon + 0.03
    squash = 0.62 if scene.river and not scene.peaks else 1.0  # a river without mountains mirrors the low sky
    sink = view.y - np.float32(mirror_line)
    mirror = (
        mirror_line
        - sink * (np.float32(squash) + np.float32(1.3 * squash) * sink)
        + wave * t * np.float32(0.1)
    )
    row = np.clip(np.abs(mirror * canvas.height - 0.5), 0, canvas.height - 1.001)
    i = row.astype(np.int64)
    j = np.arange(canvas.width)[view.cols][None]
    s = (row - i)[..., None].astype(np.float32)
    below = np.minimum(i + 1, canvas.height - 1)
    image = canvas.img[i, j] * (1 - s) + canvas.img[below, j] * s
    tint = lerp(lerp(colors.top, colors.middle, 0.4), _WATERS[scene.time], 0.6)
    deep = np.clip(0.16 + 0.9 * (view.y - np.float32(top)), 0, 0.55).astype(np.float32)
    image += (deep + np.float32(0.09) * wave)[..., None] * (tint - image)
    image += (np.float32(0.035) * wave)[..., None]
    u = np.float32(scene.sun[0])
    width = np.float32(0.035) + np.float32(0.16) * t
    beam = np.exp(-(((view.u - u) / width) ** 2)) * np.clip(0.42 + 0.75 * wave, 0, 1)
    strength = {"dawn": 0.55, "day": 0.3, "dusk": 0.75, "night": 0.6}[scene.time]
    sparkle = (np.float32(strength) * beam)[..., None]
    image += sparkle * lerp(colors.glow, colors.disc, 0.5) * np.clip(1 - image, 0, 1)
    edge = np.float32(0.25) * smoothstep(-0.02, 0.0, gap)
    image *= 1 - edge[..., None] * np.float32(0.6)
    canvas.mix(view, cover(gap, px), np.clip(image, 0, 1))
