"""Threads, devices and number formats."""

from __future__ import annotations

import logging
import platform
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from l2p import runtime
from l2p.errors import UserError


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_threads_come_from_the_argument_then_the_environment_then_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert runtime.setup(threads=2) == 2 == torch.get_num_threads()
    assert runtime.setup() == 3 == torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert runtime.setup() == runtime.usable_cores() == torch.get_num_threads()


def test_a_seed_sets_every_generator():
    def draw():
        runtime.setup(threads=1, seed=4)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


def test_a_containers_quota_limits_the_cores(tmp_path, monkeypatch):
    quota = tmp_path / "cpu.max"
    real_path = runtime.Path
    monkeypatch.setattr(runtime, "Path", lambda p: quota if "cgroup" in str(p) else real_path(p))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    for text, cores in (("200000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 64)):
        quota.write_text(text)
        assert runtime.usable_cores() == cores


def test_device_by_name():
    assert runtime.pick_device("cpu") == torch.device("cpu")
    assert runtime.pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cuda:x", "cpu:0", "", "cuda:-1"):
        with pytest.raises(UserError, match="expected auto, cpu, cuda, cuda:N or mps"):
            runtime.pick_device(name)
    with pytest.raises(UserError, match="device is cuda:99, but torch sees"):
        runtime.pick_device("cuda:99")


def test_dtype_by_name(monkeypatch):
    assert runtime.pick_dtype("fp32", "cpu") == torch.float32
    assert runtime.pick_dtype("bf16", "cpu") == torch.bfloat16
    assert runtime.pick_dtype("fp16", "cpu") == torch.float16
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(runtime, "has_fast_bf16", lambda device, fast=fast: fast)
        assert runtime.pick_dtype("auto", "cpu") == dtype
    with pytest.raises(UserError, match="dtype is 'float', expected auto, bf16, fp16, fp32"):
        runtime.pick_dtype("float", "cpu")


@pytest.mark.parametrize(
    ("flags", "fast"), [("fpu avx512_bf16 sse", True), ("amx_bf16", True), ("avx2 bf16x", False)]
)
def test_bf16_is_read_from_the_flags_of_the_cpu(tmp_path, monkeypatch, flags, fast):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(runtime, "Path", lambda _: tmp_path / "cpuinfo")
    assert runtime.has_fast_bf16("cpu") is fast


def test_autocast():
    x = torch.ones(2, 2)
    with runtime.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
    with runtime.autocast("cpu", torch.float32):
        assert (x @ x).dtype == torch.float32


def test_loaders_are_hushed_and_downloads_are_not():
    import diffusers
    import transformers
    from huggingface_hub.utils import are_progress_bars_disabled

    runtime.silence_libraries()
    for library in (transformers, diffusers):
        assert not library.utils.logging.is_progress_bar_enabled()
    assert not are_progress_bars_disabled()
    torch_log = logging.getLogger(torch.utils._pytree.__name__)
    assert not torch_log.isEnabledFor(logging.WARNING) and torch_log.isEnabledFor(logging.ERROR)


def test_weights_take_the_autocast_dtype_and_come_back_as_they_were():
    network = torch.nn.Linear(4, 3)
    own = [parameter.data for parameter in network.parameters()]
    x = torch.randn(2, 4)
    with runtime.weights_in_autocast_dtype(network):  # no autocast: nothing happens
        assert [parameter.data_ptr() for parameter in network.parameters()] == [
            data.data_ptr() for data in own
        ]
    with pytest.raises(RuntimeError, match="stop"), torch.no_grad():
        with runtime.autocast("cpu", torch.bfloat16), runtime.weights_in_autocast_dtype(network):
            assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
            expected = torch.nn.functional.linear(x.bfloat16(), own[0].bfloat16(), own[1].bfloat16())
            assert torch.equal(network(x), expected)
            raise RuntimeError("stop")
    assert [parameter.data_ptr() for parameter in network.parameters()] == [data.data_ptr() for data in own]


def test_weights_of_a_mapped_file_get_memory_of_their_own(tmp_path):
    from safetensors.torch import load_file, save_file

    layer = torch.nn.Linear(5, 3)
    save_file({"odd": torch.zeros(1), **layer.state_dict()}, tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    layer.load_state_dict({name: state[name] for name in ("weight", "bias")}, assign=True)
    assert any(p.data_ptr() % runtime.ALIGNMENT for p in layer.parameters())
    assert runtime.realign_tensors(layer) is layer
    assert not any(p.data_ptr() % runtime.ALIGNMENT for p in layer.parameters())
    places = [p.data_ptr() for p in layer.parameters()]
    assert torch.equal(layer.weight, state["weight"]) and torch.equal(layer.bias, state["bias"])
    assert places == [
        p.data_ptr() for p in runtime.realign_tensors(layer).parameters()
    ]  # they have it already


def test_a_cpu_is_named():
    name = runtime.device_name("cpu")
    assert name and ":" not in name and "\n" not in name


FAULTS = """
import resource, torch
from l2p import runtime

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(count)  # freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(2**25), faults(2**24))
runtime.keep_freed_memory()
print(faults(2**25), faults(2**24))  # which finds room in what the one before has left
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the habit of glibc")
@pytest.mark.slow
def test_freed_memory_is_kept():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    _, given_back, _, kept = map(int, done.stdout.split())
    assert kept < given_back / 10
