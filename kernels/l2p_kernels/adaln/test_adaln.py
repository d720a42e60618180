"""adaln against its fp64 reference: outputs and every gradient, and PyTorch's checks of the operator."""

import pytest
import torch
import torch.nn.functional as F

from . import adaln
from .api import adaln_chunked, adaln_triton

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _inputs(shape, branch, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    rows = {"x": shape, "scale": (shape[0], shape[-1]), "shift": (shape[0], shape[-1])}
    if branch:
        rows |= {"branch": shape, "gate": (shape[0], shape[-1])}
    return {
        n: torch.randn(*s, generator=generator).to(device, dtype).requires_grad_() for n, s in rows.items()
    }


def _run(inputs, norm, impl):
    outs = adaln(**inputs, norm=norm, impl=impl)
    outs = outs if isinstance(outs, tuple) else (outs,)
    grads = [
        torch.randn(o.shape, generator=torch.Generator().manual_seed(i)).to(o) for i, o in enumerate(outs)
    ]
    return [*outs, *torch.autograd.grad(outs, list(inputs.values()), grads)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("norm", ("rms", "layer"))
@pytest.mark.parametrize("branch", (False, True))
@pytest.mark.parametrize(
    "impl, shape", (("chunked", (3, 7, 13, 20)), ("chunked", (2, 300, 4000)), ("triton", (2, 5, 24)))
)
def test_matches_the_fp64_reference(impl, shape, branch, norm, dtype):
    inputs = _inputs(shape, branch, dtype, DEVICE if impl == "triton" else "cpu")
    exact = {n: x.detach().double().requires_grad_() for n, x in inputs.items()}
    for got, wanted in zip(_run(inputs, norm, impl), _run(exact, norm, "reference"), strict=True):
        assert (got.double() - wanted).norm() / wanted.norm() <= TOLERANCE[dtype]


def test_reference_is_layer_norm():
    inputs = _inputs((2, 6, 32), False, torch.float64)
    wanted = (
        F.layer_norm(inputs["x"], (32,), eps=1e-6) * (1 + inputs["scale"][:, None]) + inputs["shift"][:, None]
    )
    torch.testing.assert_close(adaln(**inputs, norm="layer", impl="reference"), wanted)


@pytest.mark.parametrize("op", (adaln_chunked, adaln_triton), ids=("chunked", "triton"))
def test_opcheck(op):
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if op is adaln_chunked:
        utils.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(
        op, (*_inputs((2, 5, 16), True, torch.float32, DEVICE).values(), False, 1e-6), test_utils=utils
    )


def test_compile_and_export():
    inputs = {n: x.detach() for n, x in _inputs((2, 5, 16), True, torch.float32).items()}

    class Model(torch.nn.Module):
        def forward(self, x, scale, shift, branch, gate):
            return adaln(x, scale, shift, branch=branch, gate=gate)[0]

    wanted = Model()(*inputs.values())
    assert torch.equal(torch.compile(Model(), fullgraph=True, backend="aot_eager")(*inputs.values()), wanted)
    assert torch.equal(
        torch.export.export(Model(), tuple(inputs.values())).module()(*inputs.values()), wanted
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"x": torch.ones(2, 16)}, r"x must be \[B, ..., D\]"),
        ({"scale": torch.ones(2, 8)}, r"scale must be \[2, 16\].*got \[2, 8\]"),
        ({"gate": torch.ones(2, 16)}, "given together"),
        ({"norm": "batch"}, "'batch'"),
        ({"impl": "fast"}, "impl must be one of .*'fast'"),
    ],
)
def test_mistakes_are_explained(changes, words):
    inputs = {"x": torch.ones(2, 4, 16), "scale": torch.ones(2, 16), "shift": torch.ones(2, 16)}
    with pytest.raises(ValueError, match=words):
        adaln(**(inputs | changes))
