"""`adaln`: checks, dispatch, and the operators behind it."""

import importlib
from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..dispatch import choose
from ..registration import floating, register
from . import chunked
from .reference import adaln_reference

INPUTS = "Tensor x, Tensor scale, Tensor shift, Tensor? branch, Tensor? gate, bool layer_norm, float eps"


def adaln(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    branch: Tensor | None = None,
    gate: Tensor | None = None,
    norm: str = "rms",
    eps: float = 1e-6,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`norm(x) (1 + scale) + shift` in one pass, optionally after adding a gated branch: `x + gate * branch`.

    Args:
        x, branch: `[B, ..., D]`, one dtype; the norm is over D, in fp32.
        scale, shift, gate: `[B, D]`, one row for all tokens of a picture.
        norm: `rms` or `layer`.
        impl: `reference`, `chunked` (CPU), `triton`, or `auto`. It never changes the result.

    Returns:
        The modulated norm in x's shape and dtype; with a branch, also `x + gate * branch`, the new residual stream.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit.
        RuntimeError: `impl="triton"` with neither a GPU nor the interpreter.
    """
    if x.ndim < 3 or 0 in x.shape:
        raise ValueError(
            f"x must be [B, ..., D] with tokens between and no empty dimension; got {list(x.shape)}"
        )
    if norm not in ("rms", "layer"):
        raise ValueError(f"norm must be 'rms' or 'layer'; got {norm!r}")
    if (branch is None) != (gate is None):
        raise ValueError("branch and gate must be given together; got only one of them")
    for name, parameter in (("scale", scale), ("shift", shift), ("gate", gate)):
        if parameter is not None:
            floating(name, parameter, (x.shape[0], x.shape[-1]), x, "x")
    floating("x", x, x.shape, x, "x")
    if branch is not None:
        floating("branch", branch, x.shape, x, "x")
        if branch.dtype != x.dtype:
            raise ValueError(f"branch must have x's dtype {x.dtype}; got {branch.dtype}")
    impl = choose("adaln", impl, ("reference", "chunked", "triton"), x)
    run = {"reference": adaln_reference, "chunked": adaln_chunked, "triton": adaln_triton}[impl]
    out, total = run(
        x.flatten(1, -2),
        scale,
        shift,
        None if branch is None else branch.flatten(1, -2),
        gate,
        norm == "layer",
        eps,
    )
    return out.view(x.shape) if branch is None else (out.view(x.shape), total.view(x.shape))


def _fake(x, scale, shift, branch, gate, layer_norm, eps):
    return x.new_empty(x.shape), x.new_empty(0 if branch is None else x.shape)


def _flops(x, scale, shift, branch, gate, layer_norm, eps) -> tuple[int, int]:
    """Elementwise operations: square and sum, multiply and add; twice that and the sums backward."""
    values = x[0] * x[1] * x[2]
    return (5 + 2 * bool(branch)) * values, (13 + 4 * bool(branch)) * values


def _triton(direction: str, *inputs):
    return getattr(importlib.import_module(".triton", __package__), direction)(*inputs)


def _operator(name: str, forward: Callable, backward: Callable) -> Callable:
    sizes = {"tensors": 5, "gradients": 5, "outputs": 2, "differentiable": 2}
    return register(name, INPUTS, forward=forward, backward=backward, fake=_fake, flops=_flops, **sizes)


adaln_chunked = _operator("adaln_chunked", chunked.forward, chunked.backward)
adaln_triton = _operator("adaln_triton", partial(_triton, "forward"), partial(_triton, "backward"))
