"""Files that are whole or absent: everything l2p keeps is written beside its place and then moved into it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p.errors import UserError

PathLike = str | os.PathLike[str]
UMASK = os.umask(0)
os.umask(UMASK)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yields a sibling of `path` to write (a file or a folder); it takes the name `path` only if the block succeeds.

    After an exception the sibling is removed and `path` is as before; an `OSError` that a library tells in words alone
    is raised as one. After a kill the sibling stays behind under
    a hidden name, and the next attempt replaces it. The sibling keeps the suffix, from which savers tell the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    remove(partial)
    try:
        yield partial
        _flush(partial)
        if partial.is_dir() and path.exists():  # a full folder cannot be renamed over: step aside first
            old = path.with_name(f".{path.name}.old")
            remove(old)
            os.replace(path, old)
            os.replace(partial, path)
            remove(old)
        else:
            os.replace(partial, path)
    except BaseException as error:
        remove(partial)
        if (number := re.search(r"\(os error (\d+)\)$", str(error))) and not isinstance(error, OSError):
            # safetensors is written in Rust and tells of a full disk in words alone
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


def _flush(path: Path) -> None:
    # A full disk may show only when the data reach it: ask before the old file is given up. And safetensors leaves its
    # files to their owner alone, whatever the umask says.
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDWR)
            try:
                file.chmod(file.stat().st_mode | (0o666 & ~UMASK))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove(path: Path) -> None:
    """Takes away a file or a whole folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all. NaN and infinity, which are no JSON, raise ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: PathLike) -> Any:
    """The value in a JSON file. Raises UserError when the file is missing or is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, expected a JSON file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error.msg} at line {error.lineno}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file, expected JSON") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep, expected plain JSON") from None


def check_writable(folder: PathLike) -> None:
    """Makes `folder` and proves that a file can be written there; raises UserError, so that no work is lost later."""
    folder = Path(folder)
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"l2p")
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"cannot write to {folder}: a file stands where a folder is needed") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}") from None
    finally:
        if probe.parent.is_dir():
            probe.unlink(missing_ok=True)


def picture_files(folder: PathLike) -> list[Path]:
    """The pictures in a folder, by name; none if there is no such folder."""
    return sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in PICTURES)


def holds_pictures(folder: PathLike) -> bool:
    """Whether a folder has pictures and no model."""
    folder = Path(folder)
    if not folder.is_dir() or any((folder / name).is_file() for name in ("model_index.json", "config.json")):
        return False
    return bool(picture_files(folder))
