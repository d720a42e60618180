"""The operator as PyTorch sees it: schema, fake tensors, autograd, compile, export, operation counts."""

import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from .api import patch_attention
from .cases import Case, relative_rms
from .op import pairs, patch_attention_triton, patch_attention_windowed
from .reference import reach

HAS_COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))
INDUCTOR = (pytest.mark.slow, pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler"))
PLAIN = Case(1, 9, 10, tile=4, halo=2, heads=2, head_dim=16)
FULL = Case(1, 6, 9, tile=4, halo=2, heads=1, head_dim=16, norm=True, rope=True)


def _arguments(case, op):
    device = "cuda" if op is patch_attention_triton and torch.cuda.is_available() else "cpu"
    inputs = case.tensors(device=device)
    names = ("q", "k", "v", "q_norm", "k_norm")
    return *(inputs.get(n) for n in names), *(case.angles(device) or (None, None)), case.tile, case.halo, 0.25


@pytest.mark.parametrize("op", (patch_attention_windowed, patch_attention_triton), ids=("windowed", "triton"))
@pytest.mark.parametrize("case", (PLAIN, FULL), ids=("plain", "full"))
def test_opcheck(op, case):
    if op is patch_attention_triton and case is PLAIN:
        pytest.skip("the interpreter is slow: one case")
    torch.library.opcheck(
        op, _arguments(case, op), test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )


def test_opcheck_aot_dispatch():
    torch.library.opcheck(
        patch_attention_windowed,
        _arguments(FULL, patch_attention_windowed),
        test_utils="test_aot_dispatch_dynamic",
        atol=1e-5,
        rtol=1e-4,
    )


class Model(torch.nn.Module):
    """A projection, the operator, a sum: what a block of a network does."""

    def __init__(self, case):
        super().__init__()
        self.case = case
        self.norm = torch.nn.Parameter(torch.ones(case.head_dim))

    def forward(self, x):
        q, k, v = (x * w for w in (1.0, 0.5, 2.0))
        options = {"tile": self.case.tile, "halo": self.case.halo, "rope": self.case.angles()}
        return patch_attention(q, k, v, q_norm=self.norm, k_norm=self.norm, **options)


@pytest.mark.parametrize("backend", ("aot_eager", pytest.param("inductor", marks=INDUCTOR)))
def test_compile_fullgraph_forward_and_backward(backend):
    model, x = Model(FULL), FULL.tensors()["q"]
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for run in (model, compiled):
        x.grad = model.norm.grad = None
        out = run(x)
        out.square().sum().backward()
        found = [out.detach(), x.grad, model.norm.grad]
        if run is model:
            wanted = found
    assert all(relative_rms(a, b) < 2e-6 for a, b in zip(found, wanted, strict=True))


def test_export():
    model, x = Model(FULL), FULL.tensors()["q"].detach()
    exported = torch.export.export(model, (x,))
    assert any("patch_attention_windowed" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(x), model(x))


@pytest.mark.parametrize("shape", ((16, 16, 8, 4), (17, 9, 4, 1), (5, 7, 8, 9), (20, 3, 4, 0)))
def test_operation_count_is_the_number_of_true_mask_entries(shape):
    height, width, tile, halo = shape
    dense = int(reach(height, tile, halo).sum()) * int(reach(width, tile, halo).sum())
    assert pairs(height, width, tile, halo) == dense
    case = Case(2, height, width, heads=2, head_dim=16, tile=tile, halo=halo)
    with FlopCounterMode(display=False) as counter:
        case.run(case.tensors(), "windowed").sum().backward()
    assert counter.get_total_flops() == (4 + 10) * dense * 2 * 2 * 16
