"""Students by name: a folder is itself, a bundled one comes with the package, ``USER/NAME[@revision]`` is fetched from
the Hub into its cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from l2p.errors import UserError
from l2p.files import PathLike, atomic_path
from l2p.remote import TEXTS, HubName, download
from l2p.students.io import check_replaceable, read_config
from l2p.students.shipped import BUNDLED, bundled_students

# Nothing that runs code when it is loaded is fetched: no pickles, no Python.
PATTERNS = (*TEXTS, "*.safetensors", "*.yaml", "*.md", "*.png")


def resolve_student(student: PathLike, endpoint: str | None = None) -> Path:
    """Folder of a student given as a folder, as a bundled name or as ``USER/NAME[@revision]``.

    Raises:
        UserError: neither is there, or what is there is no student.
    """
    text = str(student)
    name, shipped = HubName.parse(text), bundled_students()
    if not Path(text).exists() and text in shipped:
        return BUNDLED / text
    if Path(text).exists() or name is None:
        try:
            read_config(text)
        except UserError as error:
            if Path(text).exists() or not shipped:
                raise
            raise UserError(f"{error}, or one that comes with l2p: {', '.join(shipped)}") from None
        return Path(text)
    try:
        folder = download(name, PATTERNS, endpoint)
    except UserError as error:
        raise UserError(f"no student at {text}: there is no such folder, and {error}") from None
    read_config(folder)
    return folder


def pull(student: str, out: PathLike | None = None, endpoint: str | None = None) -> Path:
    """Fetch ``USER/NAME[@revision]`` and check that a student came.

    Args:
        out: folder to copy it to; else it stays in the Hub's cache.

    Returns:
        the student's folder.

    Raises:
        UserError: no such name, no way to the Hub, damaged files, no student, or `out` holds something else.
    """
    name = HubName.parse(student)
    if name is None:
        raise UserError(f"{student!r} is no name on the Hub, expected USER/NAME or USER/NAME@REVISION")
    if out is not None:
        check_replaceable(Path(out))
    folder = download(name, PATTERNS, endpoint)
    read_config(folder)
    if out is None:
        return folder
    with atomic_path(out) as partial:
        shutil.copytree(folder, partial)  # follows the cache's links: the copy stands alone
    return Path(out)
