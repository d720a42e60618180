"""One process at a time in a folder: a file that names its holder, and that a dead holder does not keep."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from l2p.errors import UserError
from l2p.files import check_writable


@contextmanager
def locked(folder: Path, key: str, name: str = ".lock") -> Iterator[None]:
    """Hold `folder`, or what else the lock `name` in it stands for, for this process.

    Args:
        key: of the recipe that names another folder, for the message.

    Raises:
        UserError: another living process has it, or nothing can be written there.
    """
    check_writable(folder)
    lock = folder / name
    while True:
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            if holder := _living_holder(lock):
                raise UserError(
                    f"{folder} is in use by process {holder}: wait for it, or choose another {key}"
                ) from None
            lock.unlink(missing_ok=True)  # left by a process that was killed
    with os.fdopen(descriptor, "w") as file:
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "birth": _birth(os.getpid())}, file)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _living_holder(lock: Path) -> str | None:
    """Process that holds a lock, in words; None for a stale lock."""
    try:
        holder = json.loads(lock.read_text())
        pid, host = int(holder["pid"]), holder["host"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # killed between creating and writing it
    if host != socket.gethostname():
        return f"{pid} on {host} (if that one is dead, delete {lock})"
    if pid == os.getpid() or _birth(pid) != holder.get("birth"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # alive, and someone else's
    return str(pid)


def _birth(pid: int) -> str:
    """Start time of a process where the system tells it: process numbers come again, in containers above all."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
