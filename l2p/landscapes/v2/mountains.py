"""Mountains: a pale far range, and peaks with ridges, rock and snow."""

from __future__ import annotations

import numpy as np

from ..paint import Canvas, cover, fbm1, fbm2, lerp, smoothstep
from ..scene import Peak
from .palette import SNOW, Palette
from .scene import Scene


def paint_mountains(canvas: Canvas, scene: Scene, colors: Palette) -> None:
    """A pale far range, then the peaks from the highest to the lowest."""
    if not scene.peaks:
        return
    key = scene.seed % 65521
    ridge = scene.horizon - 0.12 + 0.07 * fbm1(canvas.u + 9, key, 0.35, canvas.px)
    view = canvas.window(-99, 99, scene.horizon - 0.25, scene.horizon + 0.08)
    if view is not None:
        fade = np.clip((view.y - np.float32(scene.horizon - 0.2)) / np.float32(0.26), 0, 1)
        fade = fade + np.float32(0.06) * fbm2(view.u, view.y * 0.7, key + 1, 0.05, view.px, 6, 0.6) * (
            1 - fade
        )
        color = lerp(colors.tone(colors.rock, 0.45), colors.haze, np.float32(0.56) + np.float32(0.34) * fade)
        canvas.mix(view, cover(ridge[None] - view.y, view.px), color)
    for peak in scene.peaks:
        _peak(canvas, scene, colors, peak)


def _peak(canvas: Canvas, scene: Scene, colors: Palette, peak: Peak) -> None:
    foot = scene.horizon + 0.06
    tall = foot - peak.y
    view = canvas.window(peak.u - tall / peak.left, peak.u + tall / peak.right, peak.y - 0.012, foot)
    if view is None:
        return
    x = view.u - np.float32(peak.u)
    jag = 0.03 * fbm1(view.u, peak.key, 0.11, view.px) * np.clip(np.abs(x) * 14, 0.12, 1)
    ridge = np.float32(peak.y) + np.where(x < 0, -x * peak.left, x * peak.right).astype(np.float32) + jag
    depth = view.y - ridge  # below the skyline
    fall = view.y - np.float32(peak.y)
    sunward = 1.0 if scene.sun[0] > peak.u else -1.0
    # Spurs run down and outwards from the top: the coordinate across them is the angle seen from above the peak.
    rough = fbm2(view.u, view.y, peak.key + 3, 0.09, view.px, 8, 0.56)
    angle = (x + np.float32(0.022) * rough) / (np.maximum(fall, 0) + np.float32(0.05))
    crest = 0.05 * fbm1(fall + 3, peak.key + 17, 0.12, view.px) * smoothstep(0, 0.12, fall) + 0.1 * fall
    edge = max(0.004, 0.7 * view.px)
    face = smoothstep(-edge, edge, (x + sunward * crest + np.float32(0.012) * rough) * sunward)
    slope = _triangle(angle * np.float32(2.6) + np.float32(peak.key % 97))  # lit on one side of every spur
    spur = np.float32(-0.17 * sunward) * slope * smoothstep(0.02, 0.12, fall)
    light = np.clip(0.2 + 0.52 * face + spur + 0.15 * rough, 0, 1).astype(np.float32)
    body = colors.tone(colors.rock, light)
    line = {"summer": 0.09, "autumn": 0.12, "winter": 0.26}[scene.season] * (tall / 0.36) ** 1.5
    patchy = (
        np.float32(0.05) * rough
        + np.float32(0.03) * slope
        + 0.035 * fbm1(view.u, peak.key + 5, 0.07, view.px, 7)
    )
    snow = smoothstep(edge, -edge, fall + patchy - np.float32(line))
    snowy = colors.tone(SNOW, np.clip(light + 0.16, 0, 1))
    if scene.time in ("dawn", "dusk"):  # the low sun colours the snow
        snowy = lerp(snowy, snowy * lerp(colors.glow, SNOW, 0.35), face * np.float32(0.5))
    body += snow[..., None] * (snowy - body)
    mist = np.float32(0.14) + np.float32(0.62) * smoothstep(0.0, 1.0, fall / np.float32(tall)) ** 1.5
    canvas.mix(view, cover(-depth, view.px), body + mist[..., None] * (colors.haze - body))


def _triangle(x: np.ndarray) -> np.ndarray:
    """A zigzag in [-1, 1] of period 1."""
    return np.abs((x - np.floor(x)) * 4 - 2) - 1
