"""Pines and broad-leaved trees with their shadows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..paint import Canvas, View, blobs, cover, fbm2, lerp, noise2, polygon, rgb, smoothstep, visible
from ..scene import Tree
from .palette import SNOW, Palette
from .scene import Scene
from .texture import leaves


def ground_shadow(canvas: Canvas, scene: Scene, colors: Palette, u: float, y: float, reach: float) -> None:
    """A soft oval shadow at the foot of a thing, pointing away from the light; long where the light is low."""
    long = 1.7 if scene.time in ("dawn", "dusk") else 1.2
    away = -0.55 * np.sign(scene.sun[0]) * reach * (long - 0.4)
    view = canvas.window(u - 2.6 * reach, u + 2.6 * reach, y - 0.35 * reach, y + 0.35 * reach)
    if view is None:
        return
    x = (view.u - np.float32(u + away)) / np.float32(long * reach)
    z = (view.y - np.float32(y)) / np.float32(0.2 * reach)
    alpha = np.float32(0.5) * smoothstep(1.15, 0.5, np.sqrt(x * x + z * z))
    canvas.mix(view, alpha, colors.shaded(colors.near) * np.float32(0.72))


def paint_tree(canvas: Canvas, scene: Scene, colors: Palette, tree: Tree) -> None:
    """One tree, further ones a little hazier."""
    pine = tree.kind == "pines"
    ground_shadow(canvas, scene, colors, tree.u, tree.y, tree.height * (0.2 if pine else 0.27))
    half = tree.height * (0.29 if pine else 0.44)
    view = canvas.window(tree.u - half, tree.u + half, tree.y - 1.02 * tree.height, tree.y + 0.01)
    if view is None:
        return
    far = np.float32(np.clip((scene.horizon + 0.22 - tree.y) / 0.16, 0, 1) * 0.22)
    draw = _pine if pine else _broadleaf
    draw(canvas, scene, colors, tree, view, lambda color: color + far * (colors.haze - color))


Air = Callable[[np.ndarray], np.ndarray]


def _bark(view: View, tree: Tree) -> np.ndarray | float:
    """Furrows along the stem: lightness around 0."""
    h = np.float32(tree.height)
    u, y = (view.u - np.float32(tree.u)) / h, view.y / h
    return fbm2(u * np.float32(6), y, tree.key % 9973, 0.14, view.px / tree.height * 2, 6, 0.7)


def _pine(canvas: Canvas, scene: Scene, colors: Palette, tree: Tree, view: View, air: Air) -> None:
    """Drooping tiers of needles, each shaded by the one above it."""
    h = np.float32(tree.height)
    s, t = (view.u - np.float32(tree.u)) / h, (np.float32(tree.y) - view.y) / h
    px = view.px / tree.height
    side = float(np.sign(scene.sun[0]))
    trunk = np.maximum(np.abs(s) - np.float32(0.026) * (1.3 - t), t - 0.3)
    alpha = cover(np.maximum(trunk, -t), px)
    round_ = np.clip(0.4 + side * s * np.float32(12), 0.1, 0.9) + 0.2 * _bark(view, tree)
    canvas.mix(view, alpha, air(colors.tone(rgb(122, 88, 66), np.clip(round_ * np.ones_like(alpha), 0, 1))))
    tiers = 5 + tree.key % 3
    twig = fbm2(s, t, tree.key, 0.05, px, 6, 0.62)
    q = (np.float32(1.0) - t) / np.float32(0.9) - np.float32(0.34) * np.abs(s)
    # Twigs hang over the tier below: a comb of two sizes.
    for count, size in ((11.0, 0.016), (34.0, 0.012), (95.0, 0.006)):
        weight = visible(1.0 / count, px)
        if weight > 0:
            comb = noise2(s * np.float32(count), t * np.float32(0.25 * count), tree.key % 7919 + int(count))
            q = q + np.float32(size * weight) * comb
    q = q + np.float32(0.01) * twig
    level = np.clip(np.floor(q * tiers), 0, tiers - 1)
    part = np.clip(q * tiers - level, 0, 2)
    size = np.float32(0.235) * (level + np.float32(0.75)) / np.float32(tiers)
    inner = np.float32(0.15) * level / np.float32(tiers)
    wide = inner + (size - inner) * part ** np.float32(0.9)
    gap = (np.abs(s) - wide) * np.float32(0.86) + np.float32(0.007) * twig
    gap = np.maximum(gap, (q - np.float32(1.0)) * np.float32(0.8))
    gap = np.maximum(gap, -q * np.float32(0.4))
    light = (
        0.42 + 0.34 * np.clip(s * side / np.maximum(wide, 0.03), -1, 1) + 0.34 * (part - 0.5) + 0.12 * twig
    )
    for n, count in enumerate((46.0, 110.0)):  # needles hang outwards
        weight = visible(1.0 / count, px)
        if weight > 0:
            x = s / (wide + np.float32(0.04)) * np.float32(0.13 * count)
            light = light + np.float32(0.2 * weight) * noise2(
                x, q * np.float32(0.16 * count), tree.key % 7919 + n
            )
    base = lerp(colors.pine, colors.pine * rgb(226, 272, 200), tree.hue)
    body = colors.tone(base, np.clip(light, 0, 1).astype(np.float32))
    if scene.season == "winter":
        body = lerp(body, colors.shaded(SNOW), 0.16)
        lie = part + np.float32(0.16) * side * s / np.maximum(wide, 0.03) + np.float32(0.14) * twig
        cap = (
            smoothstep(0.2, 0.5, lie)
            * smoothstep(1.0, 0.78, part + np.float32(0.06) * twig)
            * np.float32(0.96)
        )
        cap = np.maximum(cap, smoothstep(0.12, 0.06, q))
        white = colors.tone(SNOW, np.clip(0.52 + 0.5 * (light - 0.3), 0, 1).astype(np.float32))
        body += cap[..., None] * (white - body)
    canvas.mix(view, cover(gap, px, 0.003), air(body))


def _broadleaf(canvas: Canvas, scene: Scene, colors: Palette, tree: Tree, view: View, air: Air) -> None:
    """A trunk with boughs under a heap of leafy lumps; in winter hoar frost takes the leaves' place."""
    rng = np.random.default_rng(tree.key)
    h, u, y = tree.height, tree.u, tree.y
    side = float(np.sign(scene.sun[0]))
    lean = rng.uniform(-0.03, 0.03) * h
    limbs = [[(u - 0.06 * h, y), (u + 0.06 * h, y), (u + 0.036 * h, y - 0.08 * h), (u - 0.036 * h, y - 0.08 * h)],
             [(u - 0.042 * h, y), (u + 0.042 * h, y), (u + lean + 0.024 * h, y - 0.55 * h),
              (u + lean - 0.024 * h, y - 0.55 * h)]]  # fmt: skip
    for way in (-1, 1):
        tip = u + lean + way * 0.19 * h
        limbs.append([(u + lean - 0.02 * h, y - 0.25 * h), (u + lean + 0.02 * h, y - 0.28 * h),
                      (tip + 0.011 * h, y - 0.52 * h), (tip - 0.011 * h, y - 0.52 * h)])  # fmt: skip
    stem = canvas.window(u - 0.23 * h, u + 0.23 * h, y - 0.58 * h, y + 0.005)
    if stem is not None:
        alpha = np.maximum.reduce([polygon(stem, limb) for limb in limbs])
        across = np.clip(0.42 + side * (stem.u - np.float32(u)) / np.float32(0.09 * h), 0.1, 0.9)
        light = across + 0.26 * _bark(stem, tree)
        canvas.mix(
            stem, alpha, air(colors.tone(rgb(116, 88, 68), np.clip(light * np.ones_like(alpha), 0, 1)))
        )
    count = 9
    angle = np.arange(count) * (2 * np.pi / count) + rng.uniform(0, 1)
    ring = rng.uniform(0.85, 1.12, count)
    x = np.concatenate([0.225 * ring * np.cos(angle), rng.uniform(-0.06, 0.06, 2)])
    z = np.concatenate([0.18 * ring * np.sin(angle), [-0.02, 0.07]]) + 0.66
    r = np.concatenate([rng.uniform(0.105, 0.15, count), [0.2, 0.19]])
    rounds = np.stack([u + lean + x * h, y - z * h, r * h], 1)
    crown = canvas.window(u + lean - 0.42 * h, u + lean + 0.42 * h, y - 1.02 * h, y - 0.33 * h)
    if crown is None:
        return
    gap, shade = blobs(crown.u, crown.y, rounds, (0.55 * side, -0.8))
    ragged = fbm2(crown.u, crown.y, tree.key, 0.05 * h, crown.px, 7, 0.7)
    gap = gap + np.float32(0.02 * h) * ragged
    rise = ((np.float32(y) - crown.y) / np.float32(h) - np.float32(0.64)) * np.float32(1.0)
    drift = (crown.u - np.float32(u)) * np.float32(0.5 * side / h)
    light = 0.46 + 0.36 * shade + rise + drift + 0.14 * ragged
    winter = scene.season == "winter"
    for n, (leaf, gain) in enumerate(((0.045, 0.22), (0.02, 0.34))):
        size = leaf * h
        weight = visible(size * 0.8, crown.px) * (0.6 if winter else 1.0)
        if weight > 0:
            x, z = (crown.u - np.float32(u)) / np.float32(size), (crown.y - np.float32(y)) / np.float32(size)
            light = light + np.float32(gain * weight) * leaves(
                x, z, crown.px / size, tree.key % 89 + 7 * n, 3 + n
            )
    light = np.clip(light, 0, 1).astype(np.float32)
    body = colors.tone(lerp(colors.leaf0, colors.leaf1, tree.hue), light)
    if not winter:  # sunny leaves turn warmer
        body = lerp(body, body * rgb(290, 280, 206), light * np.float32(0.5))
    canvas.mix(crown, cover(gap, crown.px, 0.0012), air(np.clip(body, 0, 1)))
