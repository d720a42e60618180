"""`l2p bench`: rows of real processes at small sizes, what fails is a row, and the clock and the slope are right."""

from __future__ import annotations

import json
import time

import pytest
import torch

from l2p.bench import paths
from l2p.bench.clock import Clock
from l2p.bench.paths import PATHS, Job
from l2p.bench.plot import slope
from l2p.bench.run import bench
from l2p.cli.bench import PATH_NAMES

KEYS = {
    "path",
    "height",
    "width",
    "steps",
    "seconds_median",
    "peak_memory_bytes",
    "device",
    "dtype",
    "parameters",
}


def test_rows_of_two_paths_with_json_and_plot(l2p, tmp_path):
    code, out, err = l2p("bench", "--preset", "tiny", "--sizes", "64x128", "--paths", "l2p,taesd", "--rounds", 2, "--warm-up", 0,
                         "--teacher-steps", 1, "--threads", 1, "--dtype", "fp32", "--device", "cpu",
                         "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png")  # fmt: skip
    assert code == 0, err
    rows = {row["path"]: row for row in json.loads((tmp_path / "b.json").read_text())["rows"]}
    assert list(rows) == ["l2p", "taesd"] and (tmp_path / "b.png").stat().st_size > 5000
    for row in rows.values():
        assert row.keys() > KEYS and row["status"] == "ok" and row["rounds"] == 2
        assert 0 < row["seconds_p20"] <= row["seconds_median"] <= row["seconds_p80"]
        assert sum(row["components"].values()) < 1.2 * row["seconds_p80"]
        assert row["peak_memory_bytes"] > 10**8 and row["parameters"] > 10**6
    assert {"text", "noise", "core", "head", "to 8-bit"} == rows["l2p"]["components"].keys()
    assert {"text", "noise", "core", "decode", "to 8-bit"} == rows["taesd"]["components"].keys()
    assert err.count("128 x 64:") == 4 and "l2p" in out and "taesd" in out


@pytest.mark.slow
def test_what_fails_is_a_row(monkeypatch):
    """A worker that takes too long, and one that cannot be built."""
    jobs = [Job("l2p", "tiny", 64, 64), Job("nothing", "tiny", 64, 64)]
    late, wrong = bench(jobs, rounds=1, time_limit=0.05)
    assert late["status"] == "timed out after 0.05 s" and wrong["status"].startswith("timed out")
    (wrong,) = bench(jobs[1:], rounds=1, time_limit=100)
    assert wrong["status"] == "KeyError: 'nothing'" and wrong["seconds_median"] is None
    assert wrong["peak_memory_bytes"] > 10**8


@pytest.mark.parametrize("name", sorted(set(PATH_NAMES) - {"l2p", "taesd"}))
def test_every_path_draws(name):
    """In this process, without a clock that stays: shapes and steps."""

    class Loose(Clock):
        def wrap(self, owner, attribute, label):
            pass

    job = Job(name, "tiny", 64, 128, batch=2, dtype="fp32", teacher_steps=2, student_steps=3)
    path = PATHS[name](job, Loose(torch.device("cpu")))
    assert path.draw(1).shape == (2, 64, 128, 3)
    assert path.steps == {"l2p-unet": 1, "l2p-multistep": 3, "pid": 1}.get(name, 2)


def test_names_are_those_of_the_paths():
    assert tuple(PATHS) == PATH_NAMES


def test_clock_counts_what_is_inside_once(monkeypatch):
    clock = Clock(torch.device("cpu"))
    now = iter([0.0, 1.0, 4.0, 9.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock.call("outer", lambda: clock.call("inner", lambda: None))
    assert clock.seconds == {"inner": 3.0, "outer": 6.0}


def test_slope_of_a_power_law():
    assert slope([(1, 3), (4, 3 * 4**1.5), (16, 3 * 16**1.5)]) == pytest.approx(1.5)
    assert slope([(1, 3)]) is None and slope([]) is None


def test_the_vae_has_the_published_shape():
    """Flux' and SD3's decoder: 49.5 M parameters with 16 latent channels."""
    with torch.device("meta"):
        vae = paths._vae(paths.SD_VAE)
    assert sum(p.numel() for p in vae.decoder.parameters()) == 49_545_475


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--paths", "l2p,vea"], "no path 'vea', expected some of l2p"),
        (["--sizes", "100"], "size '100' is not understood"),
        (["--preset", "z-image"], "the preset z-image is for counting"),
        (["--preset", "huge"], "no preset 'huge'"),
        (["--memory-budget", "lots"], "memory size 'lots' is not understood"),
        (["--plot", "a.jpg"], "--plot is a.jpg"),
        (["--rounds", "0"], "--rounds is 0"),
    ],
)
def test_mistakes_are_one_line(l2p, options, message):
    code, out, err = l2p("bench", *options)
    assert code == 2 and out == "" and err.startswith(f"l2p: {message}") and err.count("\n") == 1
