"""The commands: ahead-of-time compilation, roofline, bench."""

import json
import os
import subprocess
import sys

import pytest

from . import aot, roofline
from .patch_attention import bench


def _compile(tmp_path, *options):
    """The table that `compile` writes; fails where the command does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    table = tmp_path / "table.json"
    command = [sys.executable, "-m", "l2p_kernels", "compile", "--json", str(table), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(table.read_text())


def test_compile_for_two_architectures(tmp_path):
    """The fine grid's sizes, where wgmma is asked for and where shared memory is smallest."""
    names = (
        "patch_attention forward bf16 tile 8 halo 4 d 64",
        "strips forward bf16 d 64",
        "strips grad_kv bf16 d 64",
        "strips turn bf16 d 64",
        "philox",
    )
    rows = _compile(tmp_path, "--arch", "sm_90", "sm_120", "--only", *names)
    assert {row["arch"] for row in rows} == {"sm_90", "sm_120"}
    assert len(rows) == 2 * len(names)
    for row in rows:
        assert not row["faults"] and row["spilled"] == 0 and row["occupancy"] > 0
        assert row["shared"] <= (232_448 if row["arch"] == "sm_90" else 101_376)
        if "forward bf16" in row["kernel"] or "grad_" in row["kernel"]:
            assert row["instructions"]["wgmma" if row["arch"] == "sm_90" else "mma.sync"] > 0


@pytest.mark.slow
def test_compile_everything(tmp_path):
    rows = _compile(tmp_path)
    assert {row["arch"] for row in rows} == set(aot.DEFAULT_ARCHS)
    assert len(rows) == sum(len(list(aot.shipped(arch))) for arch in aot.DEFAULT_ARCHS)


@pytest.mark.parametrize("device", roofline.DEVICES.values(), ids=list(roofline.DEVICES))
def test_the_kernel_moves_at_most_one_and_a_half_times_the_minimum(device):
    ratio = roofline.triton_bytes(128, 3, 64, 8, 4, device) / roofline.minimum_bytes(128, 3, 64)
    assert 1 <= ratio <= 1.5


def test_without_a_cache_every_window_is_read():
    device = roofline.Device(1, 1, 0, 1)
    keys = sum(run.count * run.reach for run in roofline.runs(32, 8, 4)) ** 2
    half = roofline.minimum_bytes(32, 1, 64) // 2
    assert roofline.triton_bytes(32, 1, 64, 8, 4, device) == half + 2 * keys * 64 * 2


SMALL = ["--grid", "16", "--heads", "1", "--head-dim", "16"]


def test_bench_times_every_path(capsys):
    assert bench.main([*SMALL, "--dtype", "fp32", "--rounds", "2", "--backward"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("windowed", "unfold + SDPA", "full SDPA (*)", "p80"))


def test_bench_refuses_when_a_result_is_wrong(capsys, monkeypatch):
    monkeypatch.setattr(bench, "errors_against_reference", lambda *_: {"out": 0.1})
    assert bench.main(SMALL) == 1
    captured = capsys.readouterr()
    assert "nothing is timed" in captured.err and "median" not in captured.out


def test_bench_explains_a_wrong_grid(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--grid", "15"])
    assert "--grid must be a multiple of the tile 8; got 15" in capsys.readouterr().err
