"""Prompts from a taxonomy: a YAML file of subjects, of ways to show them, and of sentences with slots.

    classes: {CLASS: {SUB-CLASS: [SUBJECT, ...]}}
    categories: {NAME: [PHRASE, ...]}
    templates: ["{subject} {light}, {view}", ...]

Every class is as likely as any other, so is every sub-class within it and every subject within that: a class does not
grow by being listed in more detail. `taxonomy.yaml` beside this file is the built-in one.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.texts import read_text

TAXONOMY = "taxonomy"
BUILT_IN = Path(__file__).with_name("taxonomy.yaml")
SUBJECT = "subject"


def is_taxonomy(source: str | Path) -> bool:
    return str(source) == TAXONOMY or str(source).endswith((".yaml", ".yml"))


@dataclass(frozen=True)
class Taxonomy:
    """See the top of this file; every text is stripped, every slot of every template is known."""

    classes: dict[str, dict[str, list[str]]]
    categories: dict[str, list[str]]
    templates: list[str]

    def prompt(self, seed: int) -> str:
        """The sentence of a seed, the same on every machine."""
        draw = random.Random(f"prompt {seed}")
        sub_classes = draw.choice(list(self.classes.values()))
        values = {SUBJECT: draw.choice(draw.choice(list(sub_classes.values())))}
        template = draw.choice(self.templates)
        values |= {name: draw.choice(self.categories[name]) for name in sorted(_slots(template) - {SUBJECT})}
        return " ".join(template.format(**values).split())


def load_taxonomy(source: str | Path) -> Taxonomy:
    """The taxonomy of a YAML file, or the built-in one for "taxonomy". Raises UserError naming what is wrong with it."""
    path = BUILT_IN if str(source) == TAXONOMY else Path(source)
    if not path.is_file():
        raise UserError(f"no taxonomy at {path}: expected a YAML file, or {TAXONOMY!r} for the built-in one")
    return _load(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(path: Path, modified_ns: int) -> Taxonomy:
    import yaml

    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    keys = ("classes", "categories", "templates")
    if not isinstance(tree, dict) or tree.keys() - set(keys) or not tree.get("classes"):
        raise UserError(f"{path} is no taxonomy: expected the keys {', '.join(keys)}")
    classes = {
        str(name): {str(sub): _phrases(path, f"classes.{name}.{sub}", found) for sub, found in subs.items()}
        for name, subs in _section(path, "classes", tree["classes"]).items()
        if _section(path, f"classes.{name}", subs)
    }
    categories = {
        str(name): _phrases(path, f"categories.{name}", found)
        for name, found in (
            _section(path, "categories", tree["categories"]) if tree.get("categories") else {}
        ).items()
    }
    templates = _phrases(path, "templates", tree.get("templates"))
    for template in templates:
        unknown = _slots(template, path) - {SUBJECT, *categories}
        if unknown or SUBJECT not in _slots(template):
            wrong = f"an unknown slot {{{min(unknown)}}}" if unknown else "no {subject}"
            raise UserError(
                f"{path}: the template {template!r} has {wrong}: expected {{subject}} and any of "
                f"{', '.join(categories)}"
            )
    return Taxonomy(classes, categories, templates)


def _section(path: Path, key: str, value: Any) -> dict:
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path}: {key} is {value!r}, expected names with something below each")
    return value


def _phrases(path: Path, key: str, value: Any) -> list[str]:
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(text, str) and text.strip() for text in value)
    ):
        raise UserError(f"{path}: {key} is {str(value)[:60]}, expected a list of texts, one or more")
    return [text.strip() for text in value]


def _slots(template: str, path: Path | None = None) -> set[str]:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(f"{path}: the template {template!r} is broken: {error}") from None
