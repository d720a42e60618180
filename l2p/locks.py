"""One process at a time in a folder: a lock of the operating system, which ends with its holder, however that one ends."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from l2p.errors import UserError
from l2p.files import check_writable

T = TypeVar("T")
PATIENCE = 0.2  # seconds: a holder that is just leaving is no holder


class InUse(UserError):
    """Another living process holds the folder.

    Attributes:
        who: the folder and its holder, in words.
    """

    def __init__(self, who: str, advice: str) -> None:
        super().__init__(f"{who}: {advice}")
        self.who = who


@contextmanager
def locked(
    folder: Path, key: str = "output_dir", name: str = ".lock", wait: float = PATIENCE
) -> Iterator[None]:
    """Hold `folder`, or what else the lock file `name` in it stands for, for this process.

    The lock is `flock`'s, so the kernel takes it back when its process ends. The file names the holder for the message
    alone; where a kill left it behind, the next holder writes it anew. A folder that was made for it and is still empty
    at the end is removed.

    Args:
        key: the option that names another folder, for the message.
        wait: seconds to wait for another holder.

    Raises:
        InUse: another living process has it.
        UserError: nothing can be written or locked there.
    """
    path = folder / name
    # not thread_local: a generator may be closed by another thread than the one that started it
    lock = FileLock(path, timeout=wait, thread_local=False, on_acquired=_sign)
    for attempts_left in reversed(range(10)):
        made = not folder.exists()
        check_writable(folder)
        _check_own(path)
        try:
            lock.acquire()
            break
        except Timeout:
            who = f"{folder} is in use by {_holder(path)}"
            raise InUse(who, f"wait for it, or choose another {key}") from None
        except OSError as error:
            # another process that had made the folder, and left it empty, has just removed it
            if not isinstance(error, FileNotFoundError) or not attempts_left:
                raise UserError(f"cannot lock {path}: {(error.strerror or str(error)).lower()}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for this very file sees that it is gone
        lock.release()
        if made:
            with suppress(OSError):  # nothing was written there: a mistake leaves no folder
                folder.rmdir()


def holding_output_dir(run: Callable[..., T]) -> Callable[..., T]:
    """``run(recipe, ...)``, during which the process holds the recipe's ``output_dir``."""

    @wraps(run)
    def held(recipe: Any, *args: Any, **kwargs: Any) -> T:
        with locked(Path(recipe.output_dir)):
            return run(recipe, *args, **kwargs)

    return held


def _check_own(path: Path) -> None:
    """Raises UserError where the lock would be written over something else: a link, a pipe, or a file's second name."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise UserError(f"cannot lock {path}: it is no file, or has another name elsewhere: remove it")


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n", 0)


def _holder(path: Path) -> str:
    """The process that a lock file names, in words."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        pid, host = int(holder["pid"]), str(holder["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # which has not written its name yet
    return f"process {pid}" + ("" if host == socket.gethostname() else f" on {host}")
