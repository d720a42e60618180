"""Arrays on disk that are computed part by part: what is there is kept, what is of something else is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from l2p.errors import UserError
from l2p.training.arrays import fill_array


def squares(log: Path, start: int, stop: int) -> np.ndarray:
    with log.open("a") as file:
        file.write(f"{start}\n")
    return (np.arange(start, stop) ** 2).astype(np.float32)[:, None]


def fill(folder: Path, about: dict | None = None, **options) -> np.ndarray:
    compute = partial(squares, folder / "log")
    return fill_array(
        folder / "a.npy", (10, 1), np.float32, about or {"power": 2}, compute, 4, "squares", **options
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_are_computed_once(tmp_path, workers) -> None:
    first = fill(tmp_path, first=5, workers=workers)
    assert (
        first.shape == (10, 1) and np.array_equal(first[:8, 0], np.arange(8.0) ** 2) and not first[8:].any()
    )
    whole = fill(tmp_path, workers=workers)
    assert np.array_equal(whole[:, 0], np.arange(10.0) ** 2)
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "4", "8"]
    assert not whole.flags.writeable
    assert not list(tmp_path.glob("a.npy.[0-9]*.lock"))


def test_a_stopped_computation_goes_on(tmp_path) -> None:
    def stops(start: int, stop: int) -> np.ndarray:
        if start:
            raise InterruptedError
        return squares(tmp_path / "log", start, stop)

    with pytest.raises(InterruptedError):
        fill_array(tmp_path / "a.npy", (10, 1), np.float32, {"power": 2}, stops, 4, "squares")
    assert np.array_equal(fill(tmp_path)[:, 0], np.arange(10.0) ** 2)
    assert (tmp_path / "log").read_text().split() == ["0", "4", "8"]


def test_something_else_is_refused(tmp_path) -> None:
    fill(tmp_path)
    with pytest.raises(UserError, match="a.npy holds squares of another power: delete it"):
        fill(tmp_path, {"power": 3})
    with pytest.raises(UserError, match="of another shape"):
        fill_array(tmp_path / "a.npy", (11, 1), np.float32, {"power": 2}, print, 4, "squares")
