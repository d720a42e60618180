"""Students by name: a folder is itself, a bundled one comes with the package (``bundled/NAME``), ``USER/NAME[@revision]``
is fetched from the Hub into its cache."""

from __future__ import annotations

from pathlib import Path

from l2p.errors import UserError
from l2p.files import PathLike
from l2p.hub.client import TEXTS, HubName, commit_of, download

BUNDLED = Path(__file__).parent / "bundled"
# Nothing that runs code when it is loaded is fetched: no pickles, no Python.
PATTERNS = (*TEXTS, "*.safetensors", "*.yaml", "*.md", "*.png")


def bundled_students() -> list[str]:
    """Names of the students that need no download, sorted."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def student_help() -> str:
    """What a command may be given as its STUDENT, for its help."""
    shipped = "".join(f", or {name}, which comes with l2p" for name in bundled_students())
    return f"folder that `l2p distill` wrote, USER/NAME[@REVISION] on the Hub{shipped}"


def resolve_student(student: PathLike, endpoint: str | None = None) -> Path:
    """Folder of a student given as a folder, as a bundled name or as ``USER/NAME[@revision]``.

    Raises:
        UserError: neither is there, or what is there is no student.
    """
    from l2p.students.io import read_config

    text = str(student)
    shipped = bundled_students()
    if not Path(text).exists() and text in shipped:
        return BUNDLED / text
    name = None if Path(text).exists() else HubName.of_input(text)
    if name is None:
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


def names_student(text: str) -> bool:
    """Whether a folder or a name is a student's; of a name on the Hub, which may be a teacher's, the config alone is read.

    Raises:
        UserError: a name that the Hub does not answer for.
    """
    from l2p.students.io import is_student

    name = None if Path(text).exists() else HubName.of_input(text)
    if name is None:
        return is_student(Path(text)) or (not Path(text).exists() and text in bundled_students())
    return is_student(download(name, ("config.json",)))


def results_folder(student: str, what: str) -> Path:
    """Where results about a student (or a folder of pictures) go: ``WHAT-NAME`` beside its folder, or in the working folder
    for one from the Hub, its cache or the package."""
    folder = Path(student).resolve()
    if folder.is_dir() and not commit_of(folder):
        return folder.parent / f"{what}-{folder.name}"
    return Path(f"{what}-{folder.name}")
