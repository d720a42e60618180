"""The Triton kernels, interpreted where there is no GPU, against the fp64 reference."""

import os
import subprocess
import sys

import pytest
import torch

from .cases import Case, errors_against_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}

CASES = [
    Case(1, 7, 9, tile=4, halo=1, heads=2, head_dim=16),
    Case(1, 9, 10, tile=8, halo=4, heads=1, head_dim=32, norm=True, rope=True),
]
SLOW = [
    Case(3, 7, 13, tile=4, halo=0, heads=1, head_dim=16, norm=True),
    Case(1, 9, 21, tile=4, halo=8, heads=1, head_dim=16, rope=True),
    Case(1, 13, 8, tile=5, halo=3, heads=1, head_dim=64, norm=True),
    Case(1, 10, 9, tile=16, halo=8, heads=1, head_dim=48, norm=True, rope=True),
    Case(3, 17, 64, tile=8, halo=4, norm=True, rope=True),
    Case(1, 33, 9, tile=8, halo=0, norm=True, head_dim=128),
    Case(1, 20, 20, tile=16, halo=4, norm=True, rope=True, head_dim=256, heads=1),
]


def test_bf16_matches_the_fp64_reference(interpreted_bf16):
    """What ships: bf16 with norms and RoPE."""
    errors = errors_against_reference(
        Case(1, 9, 10, heads=1, norm=True, rope=True), "triton", torch.bfloat16, DEVICE
    )
    assert max(errors.values()) <= 1.5e-2, errors


def _check(case, dtype):
    errors = errors_against_reference(case, "triton", dtype, DEVICE)
    assert max(errors.values()) <= TOLERANCE[dtype], errors


@pytest.fixture(autouse=True)
def poisoned():
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_matches_the_fp64_reference(case, dtype):
    _check(case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", SLOW, ids=str)
def test_triton_matches_on_larger_grids(case, dtype):
    _check(case, dtype)


def test_strided_inputs():
    case = Case(1, 6, 9, tile=4, halo=2, heads=2, head_dim=16, rope=True)
    inputs = case.tensors(device=DEVICE)
    packed = torch.stack([inputs[n].detach() for n in "qkv"], dim=-1)  # not even the channels are contiguous
    views = dict(zip("qkv", packed.unbind(-1), strict=True))
    assert torch.equal(case.run(views, "triton"), case.run(inputs, "triton"))


@pytest.mark.skipif(DEVICE == "cuda", reason="needs a machine without a GPU")
def test_without_gpu_or_interpreter_it_says_so():
    code = "import torch; from l2p_kernels import patch_attention; q = torch.ones(1, 8, 8, 1, 16);"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    run = [sys.executable, "-c", code + "patch_attention(q, q, q, impl='triton')"]
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert "RuntimeError: impl='triton' needs a GPU tensor, or TRITON_INTERPRET=1" in done.stderr
