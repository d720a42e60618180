"""Large arrays that are computed once, part by part, and kept on disk: a stopped computation goes on where it was."""

from __future__ import annotations

import tokenize
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from l2p.artifacts import UNKNOWN, differences, plain, read_sealed, record_of, write_sealed
from l2p.errors import UserError
from l2p.files import atomic_path, read_json, remove
from l2p.terminal import say

DAMAGED_ARRAY = (ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError)  # what NumPy raises


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
    anew: bool = False,
) -> np.ndarray:
    """The array at ``path`` (npy, memory-mapped, read-only), computed where it is not there yet.

    Beside it lie its record (what it was made from, see :mod:`l2p.artifacts`) and ``path.done`` (a CRC-32 of each part that
    is there). Several processes may fill one array: a part is computed by the first that comes to it. Parts are compared
    with their checksums, and a damaged one is computed again.

    Args:
        shape: of the whole array; the first axis counts the items.
        about: what determines the values.
        compute: (start, stop) -> items [stop - start, ...]; picklable where ``workers`` is above 0.
        chunk: items of a part.
        what: for the progress bar and the message.
        first: only so many items are needed now (all by default).
        workers: processes that compute, 0 for this one.
        anew: an array of something else is made anew, with a line that says why; else it is refused.

    Raises:
        UserError: the file holds something else.
    """
    from rich.progress import track

    done = Path(f"{path}.done")
    about = plain({**about, "shape": list(shape), "dtype": np.dtype(dtype).name, "chunk": chunk})
    with _locked(f"{path}.lock"):
        _take_over(path, done, about, chunk)
        changed = _changed(path, done, about)
        if changed and not anew and changed != UNKNOWN:
            raise UserError(
                f"{path} holds {what} of other settings ({changed}): delete it, or choose another output_dir"
            )
        if changed:
            if path.exists():
                say(f"{path} is made anew ({changed})")
            remove(record_of(path))
            np.lib.format.open_memmap(path, "w+", dtype, shape)
            np.lib.format.open_memmap(done, "w+", np.uint32, (-(-shape[0] // chunk),))
            write_sealed(record_of(path), {"made_from": about})
        else:
            _forget_damaged(path, done, chunk, what)
    needed = shape[0] if first is None else min(first, shape[0])
    flags = np.load(done, mmap_mode="r", allow_pickle=False)
    missing = [start for start in range(0, needed, chunk) if not flags[start // chunk]]
    if workers and missing:
        with ProcessPoolExecutor(workers) as pool:
            jobs = [pool.submit(_fill, path, start, chunk, compute) for start in missing]
            for job in track(as_completed(jobs), description=what, total=len(jobs)):
                job.result()
    else:
        for start in track(missing, description=what) if missing else ():
            _fill(path, start, chunk, compute)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _fill(path: Path, start: int, chunk: int, compute: Callable[[int, int], np.ndarray]) -> None:
    with _locked(f"{path}.{start}.lock"):
        done = np.load(Path(f"{path}.done"), mmap_mode="r+", allow_pickle=False)
        if not done[start // chunk]:
            array = np.load(path, mmap_mode="r+", allow_pickle=False)
            stop = min(start + chunk, len(array))
            array[start:stop] = compute(start, stop)
            array.flush()
            done[start // chunk] = _checksum(array[start:stop])
            done.flush()


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """A lock whose file is gone afterwards; it goes while it is held, so that who waits for this very file sees it."""
    with FileLock(path):
        try:
            yield
        finally:
            Path(path).unlink(missing_ok=True)


def _take_over(path: Path, done: Path, about: dict, chunk: int) -> None:
    """Give an array of the first format (a note ``path.json``, marks without checksums) a record and checksums."""
    note = Path(f"{path}.json")
    if record_of(path).is_file() or not (note.is_file() and path.is_file() and done.is_file()):
        return
    flags, there = np.load(done, allow_pickle=False), read_json(note)
    if flags.dtype == np.uint8 and not differences(there, {key: about[key] for key in there if key in about}):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        sums = [_checksum(array[i * chunk : (i + 1) * chunk]) if flag else 0 for i, flag in enumerate(flags)]
        with atomic_path(done) as partial, partial.open("wb") as file:
            np.save(file, np.array(sums, np.uint32))
        write_sealed(record_of(path), {"made_from": {**about, **there}})
        note.unlink()


def _changed(path: Path, done: Path, about: dict) -> str | None:
    """Why an array may not be reused: in words what differs, or that nothing is known; None where it may."""
    if not (path.is_file() and done.is_file() and record_of(path).is_file()):
        return UNKNOWN
    try:
        there = read_sealed(record_of(path), "")["made_from"]
        array, flags = (
            np.load(path, mmap_mode="r", allow_pickle=False),
            np.load(done, mmap_mode="r", allow_pickle=False),
        )
    except (UserError, KeyError, TypeError, *DAMAGED_ARRAY):
        return UNKNOWN
    parts = -(-about["shape"][0] // about["chunk"])
    if (list(array.shape), array.dtype.name) != (about["shape"], about["dtype"]) or (
        (flags.shape, flags.dtype) != ((parts,), np.uint32)
    ):
        return differences(there, about) or UNKNOWN
    return differences(there, about) or None


def _forget_damaged(path: Path, done: Path, chunk: int, what: str) -> None:
    """Take back the parts whose bytes are not those that were written."""
    array, flags = (
        np.load(path, mmap_mode="r", allow_pickle=False),
        np.load(done, mmap_mode="r+", allow_pickle=False),
    )
    for part in np.flatnonzero(flags):
        if _checksum(array[part * chunk : (part + 1) * chunk]) != flags[part]:
            say(
                f"{what} {part * chunk} to {(part + 1) * chunk} of {path} are made anew (their bytes are damaged)"
            )
            flags[part] = 0
    flags.flush()


def _checksum(part: np.ndarray) -> int:
    """CRC-32 of a part's bytes; never 0, which stands for a part that is not there."""
    return zlib.crc32(np.ascontiguousarray(part)) or 1
