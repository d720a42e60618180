"""pixel_film against its fp64 reference: outputs and every gradient, memory, and PyTorch's checks of the operator."""

import pytest
import torch
import torch.nn.functional as F

from . import pixel_film
from .api import pixel_film_chunked, pixel_film_triton

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _inputs(count, places, channels, width, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "pixels": (count, places, channels),
        "tokens": (count, width),
        "weight": (places, 2, channels, width),
        "bias": (places, 2, channels),
    }
    factors = {"weight": width**-0.5}
    return {
        n: (torch.randn(*s, generator=generator) * factors.get(n, 1)).to(device, dtype).requires_grad_()
        for n, s in shapes.items()
    }


def _run(inputs, impl):
    out = pixel_film(**inputs, impl=impl)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad(out, list(inputs.values()), grad)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "impl, sizes",
    (
        ("chunked", (37, 16, 5, 24)),
        ("chunked", (1100, 64, 16, 8)),
        ("triton", (70, 3, 5, 70)),
        ("triton", (3, 4, 20, 16)),
    ),
)
def test_matches_the_fp64_reference(impl, sizes, dtype):
    inputs = _inputs(*sizes, dtype, DEVICE if impl == "triton" else "cpu")
    exact = {n: x.detach().double().requires_grad_() for n, x in inputs.items()}
    for got, wanted in zip(_run(inputs, impl), _run(exact, "reference"), strict=True):
        assert (got.double() - wanted).norm() / wanted.norm() <= TOLERANCE[dtype]


def test_reference_is_a_linear_layer_and_film():
    inputs = _inputs(6, 4, 3, 8, torch.float64)
    modulation = F.linear(inputs["tokens"], inputs["weight"].reshape(24, 8), inputs["bias"].reshape(24)).view(
        6, 4, 2, 3
    )
    wanted = inputs["pixels"] * (1 + modulation[:, :, 0]) + modulation[:, :, 1]
    torch.testing.assert_close(pixel_film(**inputs, impl="reference"), wanted)


@pytest.mark.parametrize("op", (pixel_film_chunked, pixel_film_triton), ids=("chunked", "triton"))
def test_opcheck(op):
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if op is pixel_film_chunked:
        utils.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(op, tuple(_inputs(3, 2, 4, 8, torch.float32, DEVICE).values()), test_utils=utils)


def test_compile_and_export():
    inputs = tuple(x.detach() for x in _inputs(5, 4, 3, 8, torch.float32).values())

    class Model(torch.nn.Module):
        def forward(self, *inputs):
            return pixel_film(*inputs)

    wanted = Model()(*inputs)
    assert torch.equal(torch.compile(Model(), fullgraph=True, backend="aot_eager")(*inputs), wanted)
    assert torch.equal(torch.export.export(Model(), inputs).module()(*inputs), wanted)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"pixels": torch.ones(2, 16)}, r"pixels must be \[N, P, C\]"),
        ({"tokens": torch.ones(3, 8)}, r"tokens must be \[2, 8\].*got \[3, 8\]"),
        ({"weight": torch.ones(4, 3, 8)}, r"weight must be \[4, 2, 3, 8\]"),
        ({"tokens": torch.ones(2, 8).half()}, "tokens must have pixels' dtype"),
    ],
)
def test_mistakes_are_explained(changes, words):
    inputs = {"pixels": torch.ones(2, 4, 3), "tokens": torch.ones(2, 8)}
    inputs |= {"weight": torch.ones(4, 2, 3, 8), "bias": torch.ones(4, 2, 3)}
    with pytest.raises(ValueError, match=words):
        pixel_film(**(inputs | changes))
