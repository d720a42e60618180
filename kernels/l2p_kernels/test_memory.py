"""Peak memory of the CPU paths, in a process of their own: what they hold beyond inputs and output does not grow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
MEASURE = """
import torch
from l2p_kernels import patch_attention
torch.set_num_threads(1)
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
{setup}
with torch.no_grad():
    call(warm)  # whatever is allocated once
    before = status("VmRSS")
    out = call(inputs)
# Not ru_maxrss: across exec it keeps the peak of the process that started this one.
print(status("VmHWM") - before - out.numel() * out.element_size())
"""

ATTENTION = """
inputs = [torch.ones(1, {grid}, {grid}, 3, 64, dtype=torch.bfloat16) for _ in range(3)]
warm = [x[:, :32, :32] for x in inputs]
def call(qkv): return patch_attention(*qkv, impl="windowed")
"""


def growth(setup: str) -> int:
    """Bytes above the inputs and the output at the call's peak (an upper bound: the process may have peaked before)."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", MEASURE.format(setup=setup)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")


def test_windowed_holds_one_band():
    """At 256 x 256 tokens inputs and output take 96 MiB; all windows at once would take 192 MiB more."""
    assert growth(ATTENTION.format(grid=256)) < 64 * MIB


@pytest.mark.slow
def test_windowed_takes_a_fifth_of_its_inputs_and_output_at_512():
    assert growth(ATTENTION.format(grid=512)) < 0.2 * 4 * 512 * 512 * 192 * 2
