"""The students that come with the package, by name: ``bundled/NAME`` is a folder as `save_student` writes it."""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"


def bundled_students() -> list[str]:
    """Names of the students that need no download, sorted."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def student_help() -> str:
    """What a command may be given as its STUDENT, for its help."""
    shipped = "".join(f", or {name}, which comes with l2p" for name in bundled_students())
    return f"folder that `l2p distill` wrote, USER/NAME[@REVISION] on the Hub{shipped}"
