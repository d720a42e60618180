"""Water: the mirror image of what stands behind it, ripples, glitter and a shore."""

from __future__ import annotations

import numpy as np

from ..paint import Canvas, cover, fbm2, lerp, noise2, rgb, smoothstep, visible
from .palette import Palette
from .scene import Scene

_WATERS = {
    "dawn": rgb(136, 190, 206),
    "day": rgb(52, 132, 184),
    "dusk": rgb(150, 104, 168),
    "night": rgb(36, 66, 132),
}


def paint_water(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """The lake or the river: the mirror image of what is painted so far, ripples and glitter."""
    body = scene.lake or scene.river
    if body is None:
        return
    top = scene.lake.y - scene.lake.b if scene.lake else scene.river.y
    end = min(1.0, scene.lake.y + scene.lake.b + 0.03) if scene.lake else 1.0
    view = canvas.window(-99, 99, top - 0.02, end)
    if view is None:
        return
    key, px = scene.seed % 63001, view.px
    t = np.maximum(view.y - np.float32(top - 0.03), np.float32(0.01))
    gap = body.distance(view.u, view.y).astype(np.float32)
    gap += np.float32(0.006) * fbm2(view.u, view.y * 2.5, key, 0.07, px, 7)
    # A shore of sand or ice, wet and dark at the water's edge.
    wide = np.float32(0.008) + np.float32(0.03) * t
    shore = cover(gap - wide, px, 0.004)
    grit = np.float32(0.14) * fbm2(view.u, view.y * 1.8, key + 5, 0.012, px, 4, 0.8)
    wet = smoothstep(0.0, 1.0, gap / wide)
    canvas.mix(
        view, shore * np.float32(0.92), colors.tone(colors.bank, np.clip(0.3 + 0.42 * wet + grit, 0, 1))
    )
    depth = np.log(t) * np.float32(9)
    wave = noise2(view.u * 5, depth * 2, key + 1) * np.float32(0.3)
    for n in range(8):  # ripples flatten with distance, so that each row carries its own
        weight = visible(t / np.float32(9 * 2.6 * 2.0**n), px) * np.float32(0.55 * 0.82**n)
        if weight[-1, 0] > 0:
            start = int(np.argmax(weight[:, 0] > 0))
            x = view.u / (t[start:] + 0.12) * (2.2 * 2.0**n)
            y = depth[start:] * (2.6 * 2.0**n) + np.float32(0.8) * wave[start:]
            wave[start:] += weight[start:] * noise2(x, y, key + 7 * n)
    glint = _fine_ripples(view.u, t, px, key)
    mirror_line = top if scene.lake else scene.horizon + 0.03
    squash = 0.62 if scene.river and not scene.peaks else 1.0  # a river without mountains mirrors the low sky
    sink = view.y - np.float32(mirror_line)
    mirror = mirror_line - sink * (np.float32(squash) + np.float32(1.3 * squash) * sink)
    mirror = mirror + wave * t * np.float32(0.1)
    row = np.clip(np.abs(mirror * canvas.height - 0.5), 0, max(canvas.height - 1.01, 0))
    i = row.astype(np.int32)
    s = (row - i)[..., None].astype(np.float32)
    i = i * np.int32(canvas.width) + np.arange(view.cols.start, view.cols.stop, dtype=np.int32)
    below = np.minimum(i + np.int32(canvas.width), canvas.height * canvas.width - 1)
    planes = canvas.planes.reshape(3, -1)
    image = planes.take(i, axis=1).transpose(1, 2, 0)
    image += s * (planes.take(below, axis=1).transpose(1, 2, 0) - image)
    tint = lerp(lerp(colors.top, colors.middle, 0.4), _WATERS[scene.time], 0.6)
    deep = np.clip(0.12 + 0.8 * (view.y - np.float32(top)), 0, 0.5).astype(np.float32)
    image += (deep + np.float32(0.12) * wave)[..., None] * (tint - image)
    image += (np.float32(0.045) * wave + np.float32(0.06) * glint)[..., None]
    width = np.float32(0.03) + np.float32(0.16) * t
    beam = np.exp(-(((view.u - np.float32(scene.sun[0])) / width) ** 2)) * np.clip(
        0.36 + 0.85 * wave + 0.4 * glint, 0, 1
    )
    strength = {"dawn": 0.55, "day": 0.3, "dusk": 0.8, "night": 0.7}[scene.time]
    sparkle = (np.float32(strength) * beam)[..., None]
    image += sparkle * lerp(colors.glow, colors.disc, 0.5) * np.clip(1 - image, 0, 1)
    edge = np.float32(0.3) * smoothstep(-0.025, 0.0, gap)
    image *= 1 - edge[..., None] * np.float32(0.6)
    canvas.mix(view, cover(gap, px), np.clip(image, 0, 1))


def _fine_ripples(u: np.ndarray, t: np.ndarray, px: float, key: int) -> np.ndarray:
    """Ripples that only large pictures hold: lightness [h, w] around 0. They move no mirror image."""
    light = np.zeros((len(t), u.shape[1]), np.float32)
    for n, count in enumerate((180.0, 420.0, 900.0)):
        weight = visible(t / np.float32(count), px)
        start = int(np.argmax(weight[:, 0] > 0))
        if weight[-1, 0] > 0:
            y = np.log(t[start:]) * np.float32(count)
            x = u / (t[start:] + np.float32(0.05)) * np.float32(0.2 * count)
            bent = y + np.float32(1.2) * noise2(x * np.float32(0.35), y * np.float32(0.12), key + 90 + n)
            # Sharp crests and wide troughs; 0.75 centres them.
            crest = np.float32(0.75) - 2 * np.abs(noise2(x, bent, key + 100 + n))
            light[start:] += weight[start:] * np.float32(0.75**n) * crest
    return light
