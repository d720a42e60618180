"""`gated_residual`: checks, dispatch, and the operators behind it."""

import importlib
from functools import partial

from torch import Tensor

from ..dispatch import choose
from ..registration import floating, register
from . import chunked
from .reference import gated_residual_reference


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor, *, impl: str = "auto") -> Tensor:
    """`x + gate * branch`, summed in fp32 and rounded once. Differentiable in all three.

    Where a norm follows, `adaln(..., branch=, gate=)` does both in one pass: take that.

    Args:
        x, branch: `[B, ..., D]`, one dtype.
        gate: `[B, D]`, one row for all tokens of a picture.
        impl: `reference`, `chunked` (CPU), `triton`, or `auto`. It never changes the result.

    Returns:
        `[B, ..., D]` in x's dtype.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit.
        RuntimeError: `impl="triton"` with neither a GPU nor the interpreter.
    """
    if x.ndim < 3 or 0 in x.shape:
        raise ValueError(
            f"x must be [B, ..., D] with tokens between and no empty dimension; got {list(x.shape)}"
        )
    floating("x", x, x.shape, x, "x")
    floating("branch", branch, x.shape, x, "x")
    floating("gate", gate, (x.shape[0], x.shape[-1]), x, "x")
    if branch.dtype != x.dtype:
        raise ValueError(f"branch must have x's dtype {x.dtype}; got {branch.dtype}")
    impl = choose("gated_residual", impl, ("reference", "chunked", "triton"), x)
    paths = {
        "reference": gated_residual_reference,
        "chunked": gated_residual_chunked,
        "triton": gated_residual_triton,
    }
    return paths[impl](x.flatten(1, -2), branch.flatten(1, -2), gate).view(x.shape)


def _fake(x, branch, gate):
    return x.new_empty(x.shape)


def _flops(x, branch, gate) -> tuple[int, int]:
    """Multiply and add forward; the branch's gradient, and the gate's product and sum, backward."""
    values = x[0] * x[1] * x[2]
    return 2 * values, 3 * values


def _triton(direction: str, *inputs):
    return getattr(importlib.import_module(".triton", __package__), direction)(*inputs)


_COMMON = {"fake": _fake, "flops": _flops, "tensors": 3, "gradients": 3}
_INPUTS = "Tensor x, Tensor branch, Tensor gate"
gated_residual_chunked = register(
    "gated_residual_chunked", _INPUTS, forward=chunked.forward, backward=chunked.backward, **_COMMON
)
gated_residual_triton = register(
    "gated_residual_triton",
    _INPUTS,
    forward=partial(_triton, "forward"),
    backward=partial(_triton, "backward"),
    **_COMMON,
)
