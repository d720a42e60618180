"""``checksums.json`` in the folder of a model that we saved: the sha256 of its weights, configs and tokenizer files.

A weight or a tokenizer file whose bytes are not those that were saved is refused. An edited config is read, with a warning
that names it. Folders without the file, of others or from before it was written, are read as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from l2p.artifacts import CHECKSUMS, MODEL_FILES, hash_file, read_sealed, write_sealed
from l2p.errors import UserError, warn

ROOT_FILES = (
    ".safetensors",
    "config.json",
    ".index.json",
    "model_index.json",
)  # ends of names beside the file
EDITABLE = ("config.json", "model_index.json", ".jinja")  # ends of names of what a user may edit


def write_checksums(folder: Path, files: Iterable[Path] | None = None) -> None:
    """Write the checksums of these files, or of all that a model's folder holds now; sub-folders with checksums of their own
    keep theirs."""
    if files is None:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and _is_covered(path, folder))
    write_sealed(
        folder / CHECKSUMS,
        {"files": {path.relative_to(folder).as_posix(): hash_file(path) for path in files}},
    )


def _is_covered(path: Path, folder: Path) -> bool:
    if path.parent == folder:
        return path.name.endswith(ROOT_FILES)
    own = any((parent / CHECKSUMS).is_file() for parent in path.parents if folder in parent.parents)
    return path.suffix in MODEL_FILES and not own and not path.name.startswith(".")


def check_folder(folder: Path, below: str | None = None) -> None:
    """Compare a model's folder with its checksums; where there are none, nothing is said.

    Args:
        below: the sub-folder to compare, "" for the files directly in the folder, None for all.

    Raises:
        UserError: a weight or a tokenizer file is missing or has other bytes, or the checksums are damaged.
    """
    for name, known in _checksums(folder).items():
        if below is None or name.rpartition("/")[0] == below:
            _compare(folder / name, known)


def check_file(path: Path) -> None:
    """Compare one file with the checksums of the folder it lies in. Raises UserError as :func:`check_folder`."""
    known = _checksums(path.parent).get(path.name)
    if known is not None:
        _compare(path, known)


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    advice = "save or download the model again, or delete this file to read the others unchecked"
    files = read_sealed(path, advice).get("files")
    if not isinstance(files, dict) or not all(isinstance(known, str) for known in files.values()):
        raise UserError(f"{path} lists no checksums: {advice}")
    return files


def _compare(path: Path, known: str) -> None:
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the folder is incomplete; save or download the model again, or delete {CHECKSUMS} if this "
            "is on purpose"
        )
    elif hash_file(path) != known:
        if not path.name.endswith(EDITABLE):
            raise UserError(
                f"{path} is damaged, or was changed since it was saved: save or download the model again, or delete "
                f"{CHECKSUMS} beside it if you changed it on purpose"
            )
        _warn_once(f"{path} was edited since the model was saved; it is read as it is now")


@cache
def _warn_once(line: str) -> None:
    warn(line)
