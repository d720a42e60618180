"""Run a command in a forked child of a warm process, and put faults into its file operations.

A fork costs milliseconds where a new process imports torch for seconds. Nothing that a child patches reaches the parent, so
faults need no undoing, and a child that is killed leaves the disk just as a killed command does.
"""

from __future__ import annotations

import atexit
import builtins
import errno
import io
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import cloudpickle

PATIENCE = 240.0  # seconds until a child counts as hung
WRITING = set("wax+")
_in_child = False  # whether this process is a command's
Hook = Callable[[int, str, Path], None]  # (number of the operation from 0, its kind, path)


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (-N for signal N), and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The errors it printed, without warnings and progress."""
        return [line for line in self.err.splitlines() if line.startswith("l2p: ") and "warning:" not in line]


def run(argv: Sequence[str], scratch: Path, prepare: Callable[[], None] | None = None) -> Outcome:
    """``l2p ARGV`` in a forked child of the warm process; within such a child, in a child of its own.

    Args:
        scratch: folder for what it prints.
        prepare: called in the child first, to put the fault in place.
    """
    return _fork(argv, scratch, prepare) if _in_child else WarmProcess.get().run(argv, scratch, prepare)


class WarmProcess:
    """A process that has imported what the commands need and has computed nothing: it can be forked at any time.

    The tests' own process cannot: a fork keeps the locks, and none of the threads, of the pools that its parent started.
    """

    _started: WarmProcess | None = None

    def __init__(self) -> None:
        self.connection, other = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.faults import injection; injection.serve({other.fileno()})"],
            pass_fds=[other.fileno()],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        other.close()

    @classmethod
    def get(cls) -> WarmProcess:
        if cls._started is None or cls._started.process.poll() is not None:
            cls._started = cls()
            atexit.register(cls._started.process.kill)
        return cls._started

    def run(self, argv: Sequence[str], scratch: Path, prepare: Callable[[], None] | None) -> Outcome:
        self.connection.send_bytes(cloudpickle.dumps((list(argv), scratch, prepare, dict(os.environ))))
        outcome = pickle.loads(self.connection.recv_bytes())
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def serve(descriptor: int) -> None:
    """The warm process: run what is asked for until the tests end."""
    import l2p.cli.distill
    import l2p.cli.evaluate
    import l2p.cli.export
    import l2p.cli.generate
    import l2p.cli.grow
    import l2p.cli.train_head
    import l2p.cli.train_teacher  # noqa: F401
    from l2p.training import distill, grow, head  # noqa: F401

    connection = Connection(descriptor)
    while True:
        try:
            argv, scratch, prepare, environment = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        os.environ.clear()
        os.environ.update(environment, OMP_NUM_THREADS="1")
        try:
            answer: Outcome | BaseException = _fork(argv, scratch, prepare)
        except AssertionError as error:
            answer = error
        connection.send_bytes(pickle.dumps(answer))


def _fork(argv: Sequence[str], scratch: Path, prepare: Callable[[], None] | None) -> Outcome:
    global _in_child
    scratch.mkdir(parents=True, exist_ok=True)
    out, err = scratch / "stdout", scratch / "stderr"
    pid = os.fork()
    if pid == 0:
        _in_child = True
        code = 70  # a bug: the command let an exception through
        try:
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (
                os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False) for number in (1, 2)
            )
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            from l2p.cli.main import main

            if prepare is not None:
                prepare()
            code = main(list(argv))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    limit = time.monotonic() + PATIENCE
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"hung: l2p {' '.join(argv)}\n{err.read_text(errors='replace')}")
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(ended[1])
    return Outcome(code, out.read_text(errors="replace"), err.read_text(errors="replace"))


class Operations:
    """Calls `hook` before every operation of this process that changes something below `root`.

    Operations are: opening for writing, making and removing folders, renaming, removing, and flushing to the disk.
    """

    def __init__(self, root: Path, hook: Hook) -> None:
        self.root, self.hook = os.path.realpath(root), hook
        self.count, self.inside = 0, False

    def install(self) -> None:
        self._wrap_open()
        self._wrap_os_open()
        for kind in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync", "ftruncate"):
            setattr(os, kind, self._wrapped(kind, getattr(os, kind)))

    def _before(self, kind: str, path: Path | str | int) -> None:
        if self.inside:  # the hook's own
            return
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.path.abspath(os.fsdecode(path))
        if path != self.root and not path.startswith(self.root + os.sep):
            return
        self.inside = True
        try:
            self.hook(self.count, kind, Path(path))
        finally:
            self.inside = False
            self.count += 1

    def _wrapped(self, kind: str, original: Callable) -> Callable:
        def call(path, *args, **kwargs):
            if kwargs.get("dir_fd") is not None and not isinstance(path, int):
                path_seen = os.path.join(os.readlink(f"/proc/self/fd/{kwargs['dir_fd']}"), os.fsdecode(path))
            else:
                path_seen = path
            self._before(kind, path_seen)
            return original(path, *args, **kwargs)

        return call

    def _wrap_open(self) -> None:
        original = builtins.open

        def opened(file, mode="r", *args, **kwargs):
            if WRITING & set(mode) and not isinstance(file, int):
                self._before("open", file)
            return original(file, mode, *args, **kwargs)

        builtins.open = io.open = tarfile.bltn_open = opened

    def _wrap_os_open(self) -> None:
        original = os.open

        def opened(path, flags, *args, **kwargs):
            if flags & (os.O_CREAT | os.O_TRUNC) and kwargs.get("dir_fd") is None:
                self._before("open", path)
            return original(path, flags, *args, **kwargs)

        os.open = opened


def snapshots(root: Path, into: Path) -> Callable[[], None]:
    """Keep a copy of `root` as it is before each operation that finds it changed: what a kill there would leave."""

    def install() -> None:
        seen: list = []

        def keep(number: int, kind: str, path: Path) -> None:
            state = [
                (p.relative_to(root).as_posix(), s.st_size, s.st_mtime_ns)
                for p in sorted(root.rglob("*"))
                for s in [p.lstat()]
            ]
            if root.is_dir() and state != seen:
                seen[:] = state
                shutil.copytree(root, into / f"{number:05d}-{kind}", symlinks=True)

        Operations(root, keep).install()

    return install


def kill_at(root: Path, number: int) -> Callable[[], None]:
    """SIGKILL before the operation of this number."""

    def die(at: int, kind: str, path: Path) -> None:
        if at == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: Operations(root, die).install()


def fail_from(root: Path, number: int, code: int, kinds: Sequence[str] = ()) -> Callable[[], None]:
    """From the operation of this number on, all (of these kinds, where given) that do not remove something raise an OSError."""
    harmless = ("unlink", "remove", "rmdir") if code in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else ()

    def fail(at: int, kind: str, path: Path) -> None:
        if at >= number and kind not in harmless and (not kinds or kind in kinds):
            raise OSError(code, os.strerror(code), str(path))

    return lambda: Operations(root, fail).install()


def vanish_at(root: Path, folder: Path, number: int) -> Callable[[], None]:
    """A folder in `root` is removed before the operation of this number."""

    def take(at: int, kind: str, path: Path) -> None:
        if at == number:
            shutil.rmtree(folder, ignore_errors=True)

    return lambda: Operations(root, take).install()


def small_disk(root: Path, size: int, code: int = errno.ENOSPC) -> Callable[[], None]:
    """Files below `root` take so many bytes together; the write beyond them raises, without a file's name, as the system does."""

    def install() -> None:
        original, left = builtins.open, [size]
        place = os.path.realpath(root) + os.sep

        class Disk(io.FileIO):
            def write(self, data) -> int:
                size = memoryview(data).nbytes
                if size > left[0]:
                    raise OSError(code, os.strerror(code))
                left[0] -= size
                return super().write(data)

        def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more, **kwargs):
            named = isinstance(file, str | bytes | os.PathLike)
            if not (
                named
                and WRITING & set(mode)
                and os.path.abspath(os.fsdecode(file)).startswith(place)
                and not more
                and not kwargs
            ):
                return original(file, mode, buffering, encoding, errors, newline, *more, **kwargs)
            raw = Disk(os.fspath(file), mode.replace("b", "").replace("t", ""))
            binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return binary
            return io.TextIOWrapper(binary, encoding, errors, newline, line_buffering=buffering == 1)

        builtins.open = io.open = tarfile.bltn_open = opened

    return install


def small_files(size: int) -> Callable[[], None]:
    """``ulimit -f``: no file grows beyond so many bytes, whoever writes it (safetensors' Rust, too)."""

    def install() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return install
