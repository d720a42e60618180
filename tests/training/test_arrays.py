"""Arrays kept on disk: of what made them, whole, and filled by several."""

from __future__ import annotations

import json

import numpy as np
import pytest

from l2p.artifacts import record_of
from l2p.errors import UserError
from l2p.training.arrays import fill_array


def fill(path, calls, seed=0, **more):
    def compute(start: int, stop: int) -> np.ndarray:
        calls.append(start)
        return np.arange(start, stop, dtype=np.int64)[:, None] + [seed, seed + 100]

    return np.array(fill_array(path, (10, 2), np.int64, {"seed": seed}, compute, 4, "numbers", **more))


def test_parts_are_computed_once_and_a_damaged_one_again(tmp_path, capsys):
    path, calls = tmp_path / "a.npy", []
    some = fill(path, calls, first=5)
    assert calls == [0, 4] and not some[8:].any() and not list(tmp_path.glob("*.lock"))
    whole = fill(path, calls)
    assert calls == [0, 4, 8] and np.array_equal(whole[:, 1], np.arange(10) + 100)
    assert np.array_equal(fill(path, calls), whole) and len(calls) == 3
    data = bytearray(path.read_bytes())
    data[-80] ^= 1  # in the rows 4 to 8
    path.write_bytes(data)
    capsys.readouterr()
    assert np.array_equal(fill(path, calls), whole) and calls[3:] == [4]
    assert "numbers 4 to 8 of" in capsys.readouterr().err


def test_an_array_of_something_else_is_refused_or_made_anew(tmp_path, capsys):
    path, calls = tmp_path / "a.npy", []
    fill(path, calls)
    with pytest.raises(
        UserError, match=r"a.npy holds numbers of other settings \(seed: 0 there, 1 here\): delete it"
    ):
        fill(path, calls, seed=1)
    assert fill(path, calls, seed=1, anew=True)[0, 0] == 1
    assert "is made anew (seed: 0 there, 1 here)" in capsys.readouterr().err
    path.unlink()
    assert fill(path, calls, seed=2)[0, 0] == 2  # the advice heals


def test_an_array_of_the_first_format_is_taken_over(tmp_path):
    path, calls = tmp_path / "a.npy", []
    whole = fill(path, calls)
    made_from = json.loads(record_of(path).read_text())["made_from"]
    record_of(path).unlink()
    (tmp_path / "a.npy.json").write_text(json.dumps(made_from))
    np.save(tmp_path / "done.npy", np.ones(3, np.uint8))
    (tmp_path / "done.npy").rename(tmp_path / "a.npy.done")
    assert np.array_equal(fill(path, calls), whole) and calls == [0, 4, 8]
