"""Files that are whole or absent: everything l2p keeps is written beside its place and then moved into it."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from l2p.errors import UserError

PathLike = str | os.PathLike[str]
UMASK = os.umask(0)
os.umask(UMASK)
PICTURES = (
    *(
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".bmp",
        ".dib",
        ".gif",
        ".tif",
        ".tiff",
        ".avif",
        ".avifs",
    ),
    *(
        ".heic",
        ".heif",
        ".hif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".jpf",
        ".jxl",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tga",
        ".qoi",
        ".psd",
    ),
    *(".exr", ".hdr", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
)  # suffixes, of formats that can be read here and of others: picture_folder.readable_suffixes
DATA = (
    *(
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".ndjson",
        ".parquet",
        ".yaml",
        ".yml",
        ".md",
        ".html",
        ".xlsx",
        ".gz",
    ),
    *(".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".gguf", ".npy", ".npz", ".tar", ".zip"),
)  # suffixes of texts and of weights
_ONE_FILE = re.compile(
    r"\S*[^\s.]\.([A-Za-z0-9]{1,5}|safetensors?)"
)  # one word with a suffix, such as nope.sft
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://\S|(hub|hf|file|timm):\S", re.IGNORECASE)
LARGEST_JSON = 256 * 2**20  # bytes
_LONGEST_STEM = 120  # bytes of a name that its writer's own name is added to; a file's name has at most 255
_SWEEP_SECONDS = 60.0
_FOREIGN_SECONDS = 7 * 24 * 3600.0
_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<start>\d*)-(?P<machine>[0-9a-f]{8})-[0-9a-f]{8}\.(?P<kind>partial|old)(\.[^.]*)?"
)
_swept: dict[Path, float] = {}  # folder -> when it was last looked through


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yields a sibling of `path` to write (a file or a folder); it takes the name `path` only if the block succeeds.

    Each writer has a sibling of its own, so several processes may write one path at once: the last to finish wins, and
    no reader sees a mixture. After an exception the sibling is removed and `path` is as before; an `OSError` that a
    library tells in words alone is raised as one, and one that names no file names `path`. After a kill the sibling stays behind under a hidden name until
    another writer comes to the folder (:func:`sweep`). The sibling keeps the suffix, from which savers tell the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    stem = path.stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
    partial = path.with_name(f".{stem}.{_writer()}.partial{path.suffix}")
    try:
        yield partial
        _flush(partial)
        _replace(partial, path)
    except BaseException as error:
        remove(partial)
        if (number := re.search(r"\(os error (\d+)\)$", str(error))) and not isinstance(error, OSError):
            # safetensors is written in Rust and tells of a full disk in words alone
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # the system does not say where a write failed
        raise


def _replace(partial: Path, path: Path) -> None:
    """Rename, also over a folder that holds something: it steps aside first."""
    aside: Path | None = None
    try:
        for _ in range(100):  # others may put a folder there at the same time
            try:
                os.replace(partial, path)
                return
            except OSError as error:
                if not partial.is_dir() or error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            if aside is not None:
                remove(aside)
            aside = path.with_name(f".{path.name}.{_writer()}.old")
            try:
                os.replace(path, aside)
            except FileNotFoundError:
                aside = None
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
    except OSError:
        if aside is not None and not os.path.lexists(path):
            os.replace(aside, path)
        raise
    finally:
        if aside is not None:
            remove(aside)


def _writer() -> str:
    """A name that no other writer has, in any process on any machine; from it :func:`sweep` knows whose it is."""
    pid = os.getpid()
    return f"{pid}-{process_start(pid)}-{_machine()}-{secrets.token_hex(4)}"


@cache
def _machine() -> str:
    """Short name of the set of processes whose numbers this process can look up."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # containers may share a host's name and a folder
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def process_start(pid: int) -> str:
    """When a process began, in the system's ticks; "" where the system does not say. Process numbers come again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`, and put back a folder that stood aside for one of them.

    Left alone: what a living process writes, what belongs to another user, and what a process on another machine wrote
    within the last week. Looks at most once a minute.
    """
    now = time.monotonic()
    if now - _swept.get(folder, -math.inf) < _SWEEP_SECONDS:
        return
    _swept[folder] = now
    with os.scandir(folder) as entries:
        found = [(entry, match) for entry in entries if (match := _LEFTOVER.fullmatch(entry.name))]
    for entry, match in found:
        path = Path(entry.path)
        try:
            status = entry.stat(follow_symlinks=False)
            if status.st_uid != os.geteuid() or _is_alive(match, status.st_mtime):
                continue
            place = folder / match["name"]
            if match["kind"] == "old" and not os.path.lexists(place):
                os.replace(path, place)
            else:
                remove(path)
        except (
            OSError
        ):  # another process swept at the same time, or the folder may not be written: no need of ours
            continue


def _is_alive(match: re.Match[str], modified: float) -> bool:
    if match["machine"] != _machine():
        return time.time() - modified < _FOREIGN_SECONDS
    pid = int(match["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # alive, and someone else's
    return process_start(pid) == match["start"]


def _flush(path: Path) -> None:
    # A full disk may show only when the data reach it: ask before the old file is given up. And safetensors leaves its
    # files to their owner alone, whatever the umask says.
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
            try:
                os.fchmod(descriptor, os.fstat(descriptor).st_mode | (0o666 & ~UMASK))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove(path: Path) -> None:
    """Takes away a file, a link (never what it leads to) or a whole folder, where there is one."""
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


def read_bytes(path: PathLike, most: int, expected: str) -> bytes:
    """The content of a regular file of at most ``most`` bytes: a device or a pipe may never end.

    Args:
        expected: what the file should be, for the message.

    Raises:
        UserError: it is no regular file, or larger.
        OSError: it is not there, is a folder, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe nobody writes would wait
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is no regular file, expected {expected}")
        size = os.fstat(descriptor).st_size
        content = file.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        limit = f"{most // 2**20} MiB" if most >= 2**20 else f"{most // 1024} KiB"
        raise UserError(f"{path} is larger than {limit}, expected {expected}")
    return content


def read_json(path: PathLike) -> Any:
    """The value in a JSON file. Raises UserError when the file is missing or is no JSON."""
    try:
        return json.loads(read_bytes(path, LARGEST_JSON, "a small JSON file").decode())
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
    except ValueError as error:  # a number of thousands of digits
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid JSON: {error}") from None


def append_line(path: PathLike, line: str, sync: bool = False) -> None:
    """Add a line of text to a file of ours, made where it is not there: whole, or not at all.

    A last line that a crash cut short is ended first.

    Args:
        sync: return once the line is on the disk, and the name of a new file in its folder, too.

    Raises:
        UserError: a link, a pipe or a device stands there, or a file with another name elsewhere: nothing is written there.
    """
    new = not os.path.lexists(path)
    descriptor = open_own(path)
    try:
        size, data = os.fstat(descriptor).st_size, (line + "\n").encode()
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            if os.write(descriptor, data) < len(data):  # one call: lines of several processes do not mix
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if sync and new:
        folder = os.open(Path(path).parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def open_own(path: PathLike) -> int:
    """A descriptor to read a regular file and append to it; it is made where it is not there, and no link is followed.

    Raises:
        UserError: as :func:`append_line`.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    flags |= sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise UserError(
                f"{path} is a link, a folder or no file, expected a file of ours: remove it"
            ) from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise UserError(
            f"{path} is no file, or has another name elsewhere, expected a file of ours: remove it"
        )
    return descriptor


_COMMIT = re.compile(r"[0-9a-f]{40}")


def leads_out(path: PathLike, folder: PathLike) -> bool:
    """Whether a path in `folder` is a link, or lies behind one, out of it: a folder of strangers may lead to private files.

    A snapshot in the Hub's cache is made of links to the blobs beside it, and these are right.
    """
    place, root = Path(path).resolve(), Path(folder).resolve()
    if place.is_relative_to(root):
        return False
    for part in (root, *root.parents):
        if part.parent.name == "snapshots" and _COMMIT.fullmatch(part.name):
            repo = part.parents[1]
            cached = repo.name.startswith(("models--", "datasets--"))
            return not (cached and place.parent == repo / "blobs")
    return True


def looks_like_path(text: str) -> bool:
    """Whether a text that names no file is a mistyped path rather than a prompt or a name on the Hub: it ends like a file of
    pictures, texts or weights, begins with ``/ ./ ../ ~/ runs/``, or with a folder that is here."""
    if text.startswith(("/", "./", "../", "~/", "runs/")) or re.match(r"[A-Za-z]:[\\/]", text):
        return True
    if text.lower().endswith((*PICTURES, *DATA)):
        return True
    first, separator, _ = text.partition("/")
    return bool(separator) and os.path.isdir(first)


def names_input(text: str) -> bool:
    """Whether a text that stands where a prompt may stand names a file, a folder or a source rather than words: it looks like a
    path (with ``#COLUMN`` or without), is one word that ends like a file's name, or begins with a scheme such as ``hub:``."""
    path, _, column = text.rpartition("#")
    if path and not re.search(r"\s", column) and (os.path.exists(path) or names_input(path)):
        return True
    return looks_like_path(text) or bool(_ONE_FILE.fullmatch(text) or _SCHEME.match(text))


def check_outputs(outputs: Iterable[PathLike], inputs: Iterable[PathLike], option: str = "--out") -> None:
    """Refuse to write over what is read: an input itself, or a file that is there in a folder that is one.

    Raises:
        UserError: names the file.
    """
    read = {Path(path).resolve() for path in inputs}
    folders = [path for path in read if path.is_dir()]
    for output in outputs:
        place = Path(output).resolve()
        within = place.is_file() and any(place.is_relative_to(folder) for folder in folders)
        if place in read or within:
            raise UserError(
                f"{option} is {output}, which this command reads or writes otherwise: choose another place"
            )


def no_such(text: str, hint: str = "") -> UserError:
    """The error for a path at which there is nothing."""
    return UserError(f"no such file or directory: {text}{f' ({hint})' if hint else ''}")


def check_could_write(folder: PathLike) -> None:
    """As :func:`check_writable`, but makes nothing: a file is written and forgotten in the first parent that is there."""
    folder = Path(folder).absolute()
    check_writable(next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent)))


def check_writable(folder: PathLike) -> None:
    """Makes `folder` and proves that a file can be written there; raises UserError, so that no work is lost later."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"l2p")
            probe.flush()
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"cannot write to {folder}: a file stands where a folder is needed") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}") from None
