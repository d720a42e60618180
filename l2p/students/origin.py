"""The teacher that a student's folder names, and how it draws."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from l2p.recipe import TeacherConfig
from l2p.students.io import read_config


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
