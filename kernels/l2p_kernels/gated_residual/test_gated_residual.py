"""gated_residual against its fp64 reference: output and every gradient, and PyTorch's checks of the operator."""

import pytest
import torch

from . import gated_residual
from .api import gated_residual_chunked, gated_residual_triton

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _inputs(shape, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = (shape, shape, (shape[0], shape[-1]))
    return [torch.randn(*s, generator=generator).to(device, dtype).requires_grad_() for s in shapes]


def _run(inputs, impl):
    out = gated_residual(*inputs, impl=impl)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "impl, shape", (("chunked", (3, 7, 13, 20)), ("chunked", (2, 300, 4000)), ("triton", (2, 5, 24)))
)
def test_matches_the_fp64_reference(impl, shape, dtype):
    inputs = _inputs(shape, dtype, DEVICE if impl == "triton" else "cpu")
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for got, wanted in zip(_run(inputs, impl), _run(exact, "reference"), strict=True):
        assert (got.double() - wanted).norm() / wanted.norm() <= TOLERANCE[dtype]


def test_reference_is_the_formula():
    x, branch, gate = _inputs((2, 6, 32), torch.float64)
    torch.testing.assert_close(gated_residual(x, branch, gate, impl="reference"), x + gate[:, None] * branch)


def test_chunked_leaves_the_incoming_gradient_alone():
    inputs = _inputs((2, 6, 32), torch.float32)
    out = gated_residual(*inputs, impl="chunked")
    grad = torch.randn_like(out)
    kept = grad.clone()
    torch.autograd.grad(out, inputs, grad)
    assert torch.equal(grad, kept)


@pytest.mark.parametrize("op", (gated_residual_chunked, gated_residual_triton), ids=("chunked", "triton"))
def test_opcheck(op):
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if op is gated_residual_chunked:
        utils.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(op, tuple(_inputs((2, 5, 16), torch.float32, DEVICE)), test_utils=utils)


def test_compile_and_export():
    inputs = tuple(x.detach() for x in _inputs((2, 5, 16), torch.float32))

    class Model(torch.nn.Module):
        def forward(self, *inputs):
            return gated_residual(*inputs)

    wanted = Model()(*inputs)
    assert torch.equal(torch.compile(Model(), fullgraph=True, backend="aot_eager")(*inputs), wanted)
    assert torch.equal(torch.export.export(Model(), inputs).module()(*inputs), wanted)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"x": torch.ones(2, 16)}, r"x must be \[B, ..., D\]"),
        ({"gate": torch.ones(2, 8)}, r"gate must be \[2, 16\].*got \[2, 8\]"),
        ({"branch": torch.ones(2, 4, 8)}, r"branch must be \[2, 4, 16\].*got \[2, 4, 8\]"),
        ({"branch": torch.ones(2, 4, 16).half()}, "branch must have x's dtype"),
        ({"impl": "fast"}, "impl must be one of .*'fast'"),
    ],
)
def test_mistakes_are_explained(changes, words):
    inputs = {"x": torch.ones(2, 4, 16), "branch": torch.ones(2, 4, 16), "gate": torch.ones(2, 16)}
    with pytest.raises(ValueError, match=words):
        gated_residual(**(inputs | changes))
