"""The commands: ahead-of-time compilation, roofline, bench."""

import json
import os
import subprocess
import sys

import pytest

from . import bench, roofline


def test_compile_one_kernel(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [
        sys.executable,
        "-m",
        "l2p_kernels",
        "compile",
        "--arch",
        "sm_80",
        "--only",
        "pixel_film grad_pixels",
    ]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "t.json")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "t.json").read_text())
    assert row["spilled"] == 0 and row["instructions"]["mma.sync"] > 0 and 0 < row["shared"] <= 166_912


@pytest.mark.parametrize("device", roofline.DEVICES.values(), ids=list(roofline.DEVICES))
def test_the_kernel_moves_at_most_one_and_a_half_times_the_minimum(device):
    ratio = roofline.triton_bytes(128, 3, 64, 8, 4, device) / roofline.minimum_bytes(128, 3, 64)
    assert 1 <= ratio <= 1.5


def test_without_a_cache_every_window_is_read():
    device = roofline.Device(1, 1, 0, 1)
    keys = sum(run.count * run.reach for run in roofline.runs(32, 8, 4)) ** 2
    half = roofline.minimum_bytes(32, 1, 64) // 2
    assert roofline.triton_bytes(32, 1, 64, 8, 4, device) == half + 2 * keys * 64 * 2


SMALL = ["--grid", "16", "--heads", "1", "--head-dim", "16", "--dtype", "fp32", "--rounds", "2"]


def test_bench_times_every_path(capsys):
    assert bench.main([*SMALL, "--backward"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("windowed", "unfold + SDPA", "full SDPA", "p80"))


def test_bench_refuses_when_a_result_is_wrong(capsys, monkeypatch):
    monkeypatch.setattr(bench, "errors_against_reference", lambda *_: {"out": 0.1})
    assert bench.main(SMALL) == 1
    assert "nothing is timed" in capsys.readouterr().err
