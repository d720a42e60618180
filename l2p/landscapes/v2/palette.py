"""Colours by the time of day and the season: those of the first world, with clearer nights and deeper greens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..paint import lerp, rgb
from ..palette import SNOW, Palette
from .scene import Scene

__all__ = ["SNOW", "Palette", "palette_of"]


def palette_of(scene: Scene) -> Palette:
    """The light and the local colours of a scene."""
    colors = Palette.of(scene)
    if scene.time == "night":
        colors = replace(
            colors,
            top=rgb(10, 20, 56),
            middle=rgb(26, 50, 104),
            low=rgb(66, 100, 152),
            haze=rgb(58, 88, 140),
            light=rgb(138, 164, 214),
            dim=rgb(54, 72, 126),
        )
    if scene.time == "dusk":
        colors = replace(colors, light=rgb(255, 196, 158), dim=rgb(116, 88, 136))
    if scene.time == "day":
        colors = replace(colors, light=rgb(255, 252, 238), dim=rgb(126, 144, 182))
    if scene.season == "summer":
        colors = replace(colors, near=rgb(92, 152, 56), far=rgb(156, 192, 92), pine=rgb(40, 102, 70))
    if scene.season == "autumn":
        colors = replace(colors, near=rgb(178, 140, 62), far=rgb(222, 190, 110))
    if scene.sky == "cloudy":
        colors = replace(colors, light=lerp(colors.light, np.full(3, colors.light.mean(), np.float32), 0.25))
    return colors
