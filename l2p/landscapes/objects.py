"""Things that stand on the land: trees with their shadows."""

from __future__ import annotations

import numpy as np

from .paint import Canvas, blobs, cover, fbm2, lerp, noise2, polygon, rgb, smoothstep, visible
from .palette import SNOW, Palette
from .scene import Scene, Tree


def ground_shadow(canvas: Canvas, scene: Scene, colors: Palette, u: float, y: float, reach: float) -> None:
    """A soft oval shadow at the foot of a thing, pointing away from the light."""
    away = -0.55 * np.sign(scene.sun[0]) * reach
    view = canvas.window(u - 2 * reach, u + 2 * reach, y - 0.35 * reach, y + 0.35 * reach)
    if view is None:
        return
    x = (view.u - np.float32(u + away)) / np.float32(1.25 * reach)
    z = (view.y - np.float32(y)) / np.float32(0.2 * reach)
    alpha = np.float32(0.5) * smoothstep(1.15, 0.55, np.sqrt(x * x + z * z))
    under = colors.shaded(colors.near) * np.float32(0.72)
    canvas.mix(view, alpha, under)


def paint_tree(canvas: Canvas, scene: Scene, colors: Palette, tree: Tree) -> None:
    """One tree, further ones a little hazier."""
    ground_shadow(
        canvas, scene, colors, tree.u, tree.y, tree.height * (0.22 if tree.kind == "pines" else 0.3)
    )
    half = tree.height * (0.32 if tree.kind == "pines" else 0.48)
    view = canvas.window(tree.u - half, tree.u + half, tree.y - 1.04 * tree.height, tree.y + 0.01)
    if view is None:
        return
    far = np.clip((0.78 - tree.y) / 0.2, 0, 1) * 0.24
    draw = _pine if tree.kind == "pines" else _broadleaf
    draw(canvas, scene, colors, tree, view, lambda c: c + np.float32(far) * (colors.haze - c))


def _pine(canvas: Canvas, scene: Scene, colors: Palette, tree: Tree, view, air) -> None:
    """Drooping tiers, each shaded by the one above it."""
    h = np.float32(tree.height)
    s, t = (view.u - np.float32(tree.u)) / h, (np.float32(tree.y) - view.y) / h
    px = view.px / tree.height
    trunk = np.maximum(np.abs(s) - np.float32(0.028) * (1.3 - t), t - 0.3)
    trunk = cover(np.maximum(trunk, -t), px)
    canvas.mix(view, trunk, air(colors.tone(rgb(112, 80, 62), 0.4)))
    tiers = 4 + tree.key % 2
    twig = fbm2(view.u, view.y, tree.key, 0.016, view.px, 5, 0.65)
    q = (np.float32(1.0) - t) / np.float32(0.88) - np.float32(0.3) * np.abs(s) + np.float32(0.012) * twig
    level = np.clip(np.floor(q * tiers), 0, tiers - 1)
    part = np.clip(q * tiers - level, 0, 2)
    size = np.float32(0.26) * (level + np.float32(0.75)) / np.float32(tiers)
    inner = np.float32(0.17) * level / np.float32(tiers)
    wide = inner + (size - inner) * part ** np.float32(0.9)
    gap = (np.abs(s) - wide) * np.float32(0.86) + np.float32(0.006) * twig
    gap = np.maximum(gap, (q - np.float32(1.0)) * np.float32(0.8))
    gap = np.maximum(gap, -q * np.float32(0.4))
    side = float(np.sign(scene.sun[0]))
    light = 0.42 + 0.34 * np.clip(s * side / np.maximum(wide, 0.03), -1, 1) + 0.3 * (part - 0.5)
    fine = visible(0.02 * tree.height, view.px)
    if fine > 0:  # needles hang outwards
        comb = noise2((s + (t - 0.5) * 0.5 * np.sign(s)) * 90, t * 26, tree.key + 3)
        light = light + np.float32(0.16 * fine) * comb
    base = lerp(colors.pine, colors.pine * rgb(220, 268, 200), tree.hue)
    body = colors.tone(base, np.clip(light, 0, 1).astype(np.float32))
    if scene.season == "winter":
        body = lerp(body, colors.shaded(SNOW), 0.18)
        cap = smoothstep(0.3, 0.72, part + np.float32(0.22) * side * s / np.maximum(wide, 0.03) + 0.1 * twig)
        cap = cap * smoothstep(0.0, -0.012, gap - 0.004) * np.float32(0.92)
        cap = np.maximum(cap, smoothstep(0.12, 0.06, q))
        white = colors.tone(SNOW, np.clip(light + 0.3, 0, 1).astype(np.float32))
        body += cap[..., None] * (white - body)
    canvas.mix(view, cover(gap, px, 0.004), air(body))


def _broadleaf(canvas: Canvas, scene: Scene, colors: Palette, tree: Tree, view, air) -> None:
    """A trunk with two boughs under a heap of leafy lumps."""
    rng = np.random.default_rng(tree.key)
    h, u, y = tree.height, tree.u, tree.y
    bark = rgb(104, 78, 62)
    lean = rng.uniform(-0.03, 0.03) * h
    stem = [
        (u - 0.055 * h, y),
        (u + 0.055 * h, y),
        (u + lean + 0.026 * h, y - 0.5 * h),
        (u + lean - 0.026 * h, y - 0.5 * h),
    ]
    alpha = polygon(view, stem)
    for way in (-1, 1):
        tip = u + lean + way * 0.2 * h
        bough = [
            (u + lean - 0.02 * h, y - 0.26 * h),
            (u + lean + 0.02 * h, y - 0.29 * h),
            (tip + 0.012 * h, y - 0.52 * h),
            (tip - 0.012 * h, y - 0.52 * h),
        ]
        alpha = np.maximum(alpha, polygon(view, bough))
    side = float(np.sign(scene.sun[0]))
    across = np.clip(0.42 + side * (view.u - np.float32(u)) / np.float32(0.09 * h), 0.1, 0.9)
    grain = 0.12 * fbm2(view.u * 4, view.y * 0.6, tree.key, 0.03, view.px, 4)
    canvas.mix(view, alpha, air(colors.tone(bark, np.clip(across + grain, 0, 1) * np.ones_like(alpha))))
    count = 9
    angle = np.arange(count - 2) * (2 * np.pi / (count - 2)) + rng.uniform(0, 1)
    ring = rng.uniform(0.85, 1.1, count - 2)
    x = np.concatenate([0.225 * ring * np.cos(angle), rng.uniform(-0.06, 0.06, 2)])
    z = np.concatenate([0.16 * ring * np.sin(angle), [-0.02, 0.06]]) + 0.66
    r = np.concatenate([rng.uniform(0.125, 0.17, count - 2), [0.22, 0.2]])
    rounds = np.stack([u + lean + x * h, y - z * h, r * h], 1)
    leaf = fbm2(view.u, view.y, tree.key, 0.02, view.px, 6, 0.75)
    gap, shade = blobs(view.u, view.y, rounds, (0.55 * side, -0.8))
    gap = gap + np.float32(0.007) * leaf
    rise = ((np.float32(y) - view.y) / np.float32(h) - np.float32(0.62)) * np.float32(1.1)
    drift = (view.u - np.float32(u)) * np.float32(0.8 * side / h)
    light = np.clip(0.46 + 0.42 * shade + rise + drift * 0.6 + 0.2 * leaf, 0, 1).astype(np.float32)
    base = lerp(colors.leaf0, colors.leaf1, tree.hue)
    body = colors.tone(base, light)
    if scene.season != "winter":  # sunny leaves turn warmer
        body = lerp(body, body * rgb(285, 276, 214), light * np.float32(0.5))
    canvas.mix(view, cover(gap, view.px, 0.0015), air(np.clip(body, 0, 1)))
