"""The recipes that come with the package, by name: ``quickstart`` is ``recipes/quickstart.yaml``."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

from l2p.errors import UserError
from l2p.extras import checkout


def recipes_folder() -> Path:
    """Where the shipped recipes are: in the checkout, or inside the installed package."""
    root = checkout()
    return root / "recipes" if root else Path(__file__).parent / "recipes"


def shipped_recipes() -> dict[str, dict[str, str]]:
    """Name of each shipped recipe -> ``command`` that takes it and ``summary``, from its header; sorted by name."""
    return {path.stem: _header(path) for path in sorted(recipes_folder().glob("*.yaml"))}


def find_recipe(recipe: str) -> Path:
    """The file of a recipe given as a path or as the name of a shipped one; what exists as a path wins.

    A path that is not there is returned as it is, so that whoever reads it says what is wrong.
    """
    path = Path(recipe)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    shipped = recipes_folder() / f"{recipe}.yaml"
    return shipped if shipped.is_file() else path


def copy_recipe(name: str, target: Path) -> Path:
    """Copy a shipped recipe to ``target``, a file or an existing folder.

    Raises:
        UserError: no shipped recipe has this name, or ``target`` exists.
    """
    source = recipes_folder() / f"{name}.yaml"
    if not source.is_file():
        raise UserError(f"no recipe {name!r} comes with l2p: expected one of {', '.join(shipped_recipes())}")
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise UserError(f"{target} exists: choose another name, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def _header(path: Path) -> dict[str, str]:
    """The first sentence of a recipe's header, and the command that the header names."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    text = " ".join(itertools.takewhile(bool, lines))
    command = re.search(rf"l2p ([\w-]+) recipes/{re.escape(path.name)}", " ".join(lines))
    return {"command": command[1] if command else "distill", "summary": text.split(". ")[0].rstrip(".")}
