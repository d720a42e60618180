"""`pull`: a student comes from the Hub, into its cache or a folder of one's own."""

from __future__ import annotations

import shutil
from pathlib import Path

from l2p.errors import UserError
from l2p.files import PathLike, atomic_path
from l2p.hub.client import HubName, download
from l2p.students.io import check_replaceable, read_config
from l2p.students.resolve import PATTERNS


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
