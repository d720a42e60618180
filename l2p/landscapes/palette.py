"""Colours by the time of day and the season."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .paint import lerp, rgb
from .scene import Scene

# sky from the top to the horizon, haze, disc and glow, the tint of lit and of shaded things
_TIMES: dict[str, dict[str, np.ndarray]] = {
    "dawn": dict(
        top=rgb(140, 196, 208),
        middle=rgb(222, 222, 208),
        low=rgb(253, 196, 184),
        haze=rgb(250, 214, 204),
        disc=rgb(255, 246, 222),
        glow=rgb(255, 226, 176),
        lit=rgb(255, 240, 226),
        dim=rgb(168, 160, 190),
    ),
    "day": dict(
        top=rgb(54, 132, 204),
        middle=rgb(120, 188, 232),
        low=rgb(206, 234, 240),
        haze=rgb(182, 216, 234),
        disc=rgb(255, 247, 200),
        glow=rgb(255, 244, 196),
        lit=rgb(255, 255, 248),
        dim=rgb(150, 166, 190),
    ),
    "dusk": dict(
        top=rgb(66, 48, 108),
        middle=rgb(196, 84, 108),
        low=rgb(255, 166, 78),
        haze=rgb(222, 118, 98),
        disc=rgb(255, 232, 150),
        glow=rgb(255, 176, 76),
        lit=rgb(246, 186, 156),
        dim=rgb(112, 80, 124),
    ),
    "night": dict(
        top=rgb(8, 16, 46),
        middle=rgb(22, 42, 90),
        low=rgb(56, 86, 134),
        haze=rgb(42, 66, 112),
        disc=rgb(250, 246, 224),
        glow=rgb(150, 178, 226),
        lit=rgb(104, 128, 176),
        dim=rgb(44, 60, 106),
    ),
}

_SEASONS: dict[str, dict[str, np.ndarray]] = {
    "summer": dict(
        near=rgb(102, 160, 62),
        far=rgb(150, 190, 98),
        pine=rgb(44, 110, 78),
        leaf0=rgb(70, 146, 62),
        leaf1=rgb(124, 176, 66),
        rock=rgb(128, 136, 156),
        bank=rgb(196, 182, 128),
    ),
    "autumn": dict(
        near=rgb(188, 146, 62),
        far=rgb(218, 184, 104),
        pine=rgb(64, 106, 76),
        leaf0=rgb(204, 76, 42),
        leaf1=rgb(242, 168, 52),
        rock=rgb(140, 128, 140),
        bank=rgb(190, 158, 110),
    ),
    "winter": dict(
        near=rgb(232, 240, 250),
        far=rgb(242, 246, 252),
        pine=rgb(52, 98, 92),
        leaf0=rgb(186, 202, 224),
        leaf1=rgb(222, 228, 238),
        rock=rgb(130, 142, 168),
        bank=rgb(206, 216, 232),
    ),
}

SNOW = rgb(246, 250, 255)


@dataclass(frozen=True)
class Palette:
    """The light and the local colours of one scene, each float32 [3] in [0, 1]."""

    top: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    haze: np.ndarray
    disc: np.ndarray
    glow: np.ndarray
    light: np.ndarray
    dim: np.ndarray
    near: np.ndarray
    far: np.ndarray
    pine: np.ndarray
    leaf0: np.ndarray
    leaf1: np.ndarray
    rock: np.ndarray
    bank: np.ndarray

    @classmethod
    def of(cls, scene: Scene) -> Palette:
        """The palette of a scene."""
        time, season = dict(_TIMES[scene.time]), _SEASONS[scene.season]
        if scene.sky == "cloudy":  # an overcast sky is paler and its light softer
            grey = time["middle"].mean() * np.ones(3, np.float32)
            for name in ("top", "middle"):
                time[name] = lerp(lerp(time[name], time["low"], 0.12), grey, 0.22)
        if scene.season == "winter":
            for name in ("top", "middle", "low"):
                time[name] = lerp(time[name], time[name].mean() * rgb(236, 250, 270), 0.18)
        light = time.pop("lit")
        return cls(light=light, **time, **season)

    def lit(self, color: np.ndarray) -> np.ndarray:
        """A local colour in the light."""
        return color * self.light

    def shaded(self, color: np.ndarray) -> np.ndarray:
        """A local colour in the shade."""
        return color * self.dim

    def tone(self, color: np.ndarray, t: np.ndarray | float) -> np.ndarray:
        """A local colour between shade (t = 0) and light (t = 1)."""
        return lerp(self.shaded(color), self.lit(color), t)
