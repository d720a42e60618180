"""Large arrays that are computed once, part by part, and kept on disk: a stopped computation goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from filelock import FileLock

from l2p.errors import UserError
from l2p.files import read_json, write_json


def fill_array(
    path: Path,
    shape: tuple[int, ...],
    dtype: type,
    about: dict,
    compute: Callable[[int, int], np.ndarray],
    chunk: int,
    what: str,
    first: int | None = None,
    workers: int = 0,
) -> np.ndarray:
    """The array at ``path`` (npy, memory-mapped, read-only), computed where it is not there yet.

    Beside it lie ``path.json`` (what it is of) and ``path.done`` (which parts are there). Several processes may fill one
    array: a part is computed by the first that comes to it.

    Args:
        shape: of the whole array; the first axis counts the items.
        about: what determines the values; an array of something else is refused.
        compute: (start, stop) -> items [stop - start, ...]; picklable where ``workers`` is above 0.
        chunk: items of a part.
        what: for the progress bar and the message.
        first: only so many items are needed now (all by default).
        workers: processes that compute, 0 for this one.

    Raises:
        UserError: the file holds something else.
    """
    from rich.progress import track

    note, done = Path(f"{path}.json"), Path(f"{path}.done")
    about = {**about, "shape": list(shape), "dtype": np.dtype(dtype).name, "chunk": chunk}
    with FileLock(f"{path}.lock"):
        if not note.exists():
            np.lib.format.open_memmap(path, "w+", dtype, shape)
            np.lib.format.open_memmap(done, "w+", np.uint8, (-(-shape[0] // chunk),))
            write_json(note, about)
    found = read_json(note)
    if found != about:
        names = [name for name in about if found.get(name) != about[name]]
        raise UserError(
            f"{path} holds {what} of another {', '.join(names)}: delete it and {note.name}, or choose another output_dir"
        )
    needed = shape[0] if first is None else min(first, shape[0])
    flags = np.load(done, mmap_mode="r")
    missing = [start for start in range(0, needed, chunk) if not flags[start // chunk]]
    if workers and missing:
        with ProcessPoolExecutor(workers) as pool:
            jobs = [pool.submit(_fill, path, start, chunk, compute) for start in missing]
            for job in track(as_completed(jobs), description=what, total=len(jobs)):
                job.result()
    else:
        for start in track(missing, description=what) if missing else ():
            _fill(path, start, chunk, compute)
    return np.load(path, mmap_mode="r")


def _fill(path: Path, start: int, chunk: int, compute: Callable[[int, int], np.ndarray]) -> None:
    lock = FileLock(f"{path}.{start}.lock")
    with lock:
        done = np.load(Path(f"{path}.done"), mmap_mode="r+")
        if not done[start // chunk]:
            array = np.load(path, mmap_mode="r+")
            stop = min(start + chunk, len(array))
            array[start:stop] = compute(start, stop)
            array.flush()
            done[start // chunk] = 1
            done.flush()
    Path(lock.lock_file).unlink(missing_ok=True)
