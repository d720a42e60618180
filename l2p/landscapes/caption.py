"""Scenes in words, and words back into attributes."""

from __future__ import annotations

import re

import numpy as np

from .scene import Scene

# every way to say an attribute's value inside a caption; the first one of a season or time also stands alone
_TIMES = {
    "dawn": ("at dawn", "at sunrise", "in the early morning", "at daybreak"),
    "day": ("by day", "at noon", "in daylight", "on a bright day"),
    "dusk": ("at dusk", "at sunset", "in the evening", "at twilight"),
    "night": ("at night", "by night", "in the moonlight", "under the moon"),
}
_SEASONS = {
    "summer": ("in summer", "on green grass", "in the green summer"),
    "autumn": ("in autumn", "in fall", "in golden autumn"),
    "winter": ("in winter", "in the snow", "on snowy land"),
}
_LEADING_SEASONS = {
    "summer": ("summer", "green", "a summer scene"),
    "autumn": ("autumn", "fall", "autumn colors"),
    "winter": ("winter", "snow", "everything covered in snow"),
}
_WATER = {
    "river": ("a river", "a winding river", "a small stream", "a blue river"),
    "lake": ("a lake", "a calm lake", "a still lake", "a small lake"),
}
_HOUSES = ("a house", "a small house", "a cottage", "a little cabin", "a lonely house")
_TREES = {
    "pines": ("pine trees", "pines", "fir trees", "tall pines", "some pine trees"),
    "broadleaf": ("leafy trees", "round trees", "broadleaf trees", "a few oak trees", "old oaks"),
}
_MOUNTAINS = ("mountains", "high mountains", "distant mountains", "mountain peaks", "big mountains")
_SKIES = {
    "clear": ("a clear sky", "clear sky", "no clouds", "a cloudless sky"),
    "cloudy": ("a cloudy sky", "clouds", "clouds in the sky", "soft clouds"),
}
_ABSENT = {
    "water": ("no water",),
    "house": ("no house", "nobody lives here"),
    "trees": ("no trees", "without trees"),
    "mountains": ("no mountains", "flat land"),
}
_PLACES = ("a meadow", "open land", "a quiet field", "a wide meadow")

# what a text says, by pattern; for each attribute the first pattern that is found decides
_READ: dict[str, tuple[tuple[str, str], ...]] = {
    "time": (
        ("dawn", r"dawn|sunrise|morning|daybreak|misty|foggy"),
        ("dusk", r"dusk|sunset|evening|twilight"),
        ("night", r"night|moon|moonlight|moonlit|stars|starry|midnight"),
        ("day", r"day|noon|daylight|daytime|midday|sunny|afternoon"),
    ),
    "season": (
        ("winter", r"winter|snow|snowy|snowfall|frozen|icy|wintry"),
        ("autumn", r"autumn|fall|autumnal"),
        ("summer", r"summer|green|spring"),
    ),
    "water": (
        ("none", r"(?:no|without) (?:water|lakes?|rivers?)"),
        ("river", r"rivers?|streams?|brook|creek"),
        ("lake", r"lakes?|pond|lakeside"),
    ),
    "house": (
        ("no", r"(?:no|without) (?:a )?houses?|nobody"),
        ("yes", r"houses?|cottages?|cabins?|home|hut|farmhouse"),
    ),
    "trees": (
        ("none", r"(?:no|without) trees|treeless"),
        ("pines", r"pines?|firs?|spruces?|conifers?"),
        ("broadleaf", r"broadleaf|leafy|oaks?|round trees|maples?|birch(?:es)?|deciduous"),
    ),
    "mountains": (
        ("no", r"(?:no|without) (?:mountains?|peaks)|flat"),
        ("yes", r"mountains?|peaks?|alps|alpine"),
    ),
    "sky": (
        ("clear", r"clear|no clouds|cloudless|without clouds"),
        ("cloudy", r"clouds?|cloudy|overcast"),
    ),
}
_PATTERNS = {
    name: tuple((value, re.compile(rf"\b(?:{pattern})\b")) for value, pattern in rules)
    for name, rules in _READ.items()
}


def caption(scene: Scene, seed: int | None = None) -> str:
    """A lower-case sentence about the scene; the seed (the scene's own by default) selects the wording."""
    rng = np.random.default_rng([scene.seed if seed is None else int(seed), 21])

    def pick(options: tuple[str, ...]) -> str:
        return options[min(int(len(options) * rng.uniform() ** 1.5), len(options) - 1)]

    present = [name for name in ("time", "season", "water", "house", "trees", "mountains", "sky")
               if getattr(scene, name) not in ("none", "no", "clear")]  # fmt: skip
    drops = min(int(rng.choice(3, p=[0.5, 0.3, 0.2])), max(0, len(present) - 3))
    skipped = set(rng.permutation(present)[:drops])
    said = [name for name in present if name not in skipped]

    things = []
    if "trees" in said:
        things.append(pick(_TREES[scene.trees]))
    if "mountains" in said:
        things.append(pick(_MOUNTAINS))
    if "sky" in said:
        things.append(pick(_SKIES["cloudy"]))
    rng.shuffle(things)
    water = pick(_WATER[scene.water]) if "water" in said else ""
    house = pick(_HOUSES) if "house" in said else ""
    if water and house:
        subject = pick((f"{house} by {water}", f"{house} near {water}", f"{water} and {house}"))
    elif water or house:
        subject = water or house
    elif things and rng.uniform() < 0.4:
        subject = things.pop(0)
    else:
        subject = pick(_PLACES)

    time = pick(_TIMES[scene.time]) if "time" in said else ""
    season = pick(_SEASONS[scene.season]) if "season" in said else ""
    alone = pick(_LEADING_SEASONS[scene.season]) if season else ""
    absent = [pick(_ABSENT[name]) for name in _ABSENT if getattr(scene, name) in ("none", "no")]
    if scene.sky == "clear":
        absent += [pick(_SKIES["clear"])] * 2
    extra = [str(rng.choice(absent))] if absent and rng.uniform() < (0.3 if len(present) > 3 else 0.6) else []
    listed = _join(things)

    def line(*parts: str) -> str:
        return ", ".join(part for part in parts if part)

    def phrase(*parts: str) -> str:
        return " ".join(part for part in parts if part)

    forms = (
        line(phrase(subject, time), listed, alone, *extra),
        line(phrase(subject, f"with {listed}" if listed else "", time, season), *extra),
        line(phrase(subject, season, time), listed, *extra),
        line(time, phrase(subject, season), listed, *extra),
        line(alone, phrase(subject, time), listed, *extra),
    )
    return min(forms, key=len) if rng.uniform() < 0.1 else forms[int(rng.integers(len(forms)))]


def parse(text: str) -> dict[str, str]:
    """The attributes that a text names, in the order of ATTRIBUTES; the others are missing."""
    words = " ".join(re.findall(r"[a-z]+", text.lower()))
    found = {}
    for name, rules in _PATTERNS.items():
        value = next((value for value, pattern in rules if pattern.search(words)), None)
        if value is not None:
            found[name] = value
    return found


def _join(things: list[str]) -> str:
    return " and ".join(things) if len(things) < 3 else ", ".join(things[:-1]) + " and " + things[-1]
