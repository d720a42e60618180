"""The teacher that a student's folder names, and how it draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from l2p.corpus.prompts import LANDSCAPES
from l2p.errors import UserError
from l2p.recipe import TeacherConfig
from l2p.students.io import read_config


def recipe_prompts(folder: str | Path, recipe: Mapping[str, Any]) -> str:
    """The prompts that a student's recipe names: ``landscapes``, or a file within its own folder.

    Any other file is not read: a folder from elsewhere could name a private one, and its lines would stand in a report.

    Raises:
        UserError: the recipe names another file.
    """
    named = (recipe.get("corpus") or {}).get("prompts", LANDSCAPES)
    if named == LANDSCAPES:
        return LANDSCAPES
    inside = (Path(folder) / str(named)).resolve()
    if inside.is_relative_to(Path(folder).resolve()) and inside.is_file():
        return str(inside)
    raise UserError(
        f"{folder} was made with the prompts {str(named)[:200]!r}, and what a student's config names is not read: "
        "give a file yourself with --prompts"
    )


def teacher_config(folder: str | Path, against: str | None = None) -> TeacherConfig | None:
    """The teacher of a student's ``config.json``: what its recipe says, else what its spec says; None if neither does.

    Args:
        against: another teacher (folder or name on the Hub) to draw with the same settings.
    """
    config = read_config(folder)
    told = (config.get("recipe") or {}).get("teacher") or {}
    if isinstance(told, str):  # a recipe that needs no more of its teacher than its name
        told = {"path": told}
    origin = {**(config.get("teacher") or {}), **told}
    name = against or origin.get("path") or origin.get("name")
    if not name:
        return None
    settings = {f.name: origin[f.name] for f in fields(TeacherConfig) if f.name in origin}
    if against:
        settings.pop("revision", None)
    return TeacherConfig(**{**settings, "path": name})
