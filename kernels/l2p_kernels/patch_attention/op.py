"""The fast paths as PyTorch operators `torch.ops.l2p_kernels.patch_attention_{windowed,triton}`, with their gradients.

Opaque to the compiler (`custom_op`), so a model that holds them compiles with fullgraph and exports on any machine.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import windowed
from .windows import runs

INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? global_k, Tensor? global_v, Tensor? q_norm, Tensor? k_norm,"
    " Tensor? rows, Tensor? columns, int tile, int halo, float scale"
)
TENSORS, GRADIENTS = 9, 7  # of the inputs above: tensors, and those with a gradient


def pairs(height: int, width: int, tile: int, halo: int, num_global: int) -> int:
    """How many (query, key) pairs of one head of one picture are in reach."""
    by_row, by_column = (
        sum(run.size * run.count * run.reach for run in runs(n, tile, halo)) for n in (height, width)
    )
    return by_row * by_column + height * width * num_global


def _products(q, global_k, tile, halo) -> int:
    """Multiplications of one matrix product of the operator."""
    batch, height, width, heads, head_dim = q
    return batch * heads * head_dim * pairs(height, width, tile, halo, 0 if global_k is None else global_k[1])


def _register(name: str, forward: Callable, backward: Callable, keeps_output: bool) -> Callable:
    """`forward(*inputs) -> (out, lse)`, `backward(grad, out, lse, *inputs) -> gradients or None, one an input`.

    lse is empty, and out is not kept for the backward pass, where `keeps_output` is false.
    """

    def run(*inputs):
        with torch.autocast(inputs[0].device.type, enabled=False):
            return forward(*inputs)

    def run_backward(grad, out, lse, *inputs):
        with torch.autocast(grad.device.type, enabled=False):
            return [g for g in backward(grad, out, lse, *inputs) if g is not None]

    schema = f"({INPUTS}) -> (Tensor, Tensor)"
    op = torch.library.custom_op(f"l2p_kernels::{name}", run, mutates_args=(), schema=schema)
    schema = f"(Tensor grad, Tensor? out, Tensor? lse, {INPUTS}) -> Tensor[]"
    backward_op = torch.library.custom_op(
        f"l2p_kernels::{name}_backward", run_backward, mutates_args=(), schema=schema
    )

    @op.register_fake
    def _(q, *inputs):
        return q.new_empty(q.shape), q.new_empty(q.shape[:4] if keeps_output else (0,), dtype=torch.float32)

    @backward_op.register_fake
    def _(grad, out, lse, *inputs):
        return [x.new_empty(x.shape) for x in inputs[:GRADIENTS] if x is not None]

    def setup_context(ctx, inputs, output):
        kept = output if keeps_output else (None, None)
        ctx.save_for_backward(*kept, *inputs[:TENSORS])
        ctx.options = inputs[TENSORS:]
        ctx.set_materialize_grads(False)

    def differentiate(ctx, grad, _):
        out, lse, *inputs = ctx.saved_tensors
        grads = iter(backward_op(grad, out, lse, *inputs, *ctx.options))
        return *(None if x is None else next(grads) for x in inputs[:GRADIENTS]), *[None] * (
            2 + len(ctx.options)
        )

    op.register_autograd(differentiate, setup_context=setup_context)

    packet = getattr(torch.ops.l2p_kernels, name)
    backward_packet = getattr(torch.ops.l2p_kernels, f"{name}_backward")

    @register_flop_formula(packet)
    def _(q, k, v, global_k, global_v, qn, kn, rows, columns, tile, halo, scale, *, out_shape=None, **_):
        return 2 * 2 * _products(q, global_k, tile, halo)

    @register_flop_formula(backward_packet)
    def _(
        grad,
        out,
        lse,
        q,
        k,
        v,
        global_k,
        global_v,
        qn,
        kn,
        rows,
        columns,
        tile,
        halo,
        scale,
        *,
        out_shape=None,
        **_,
    ):
        return 5 * 2 * _products(q, global_k, tile, halo)

    return op


def _windowed(*inputs) -> tuple[Tensor, Tensor]:
    return windowed.forward(windowed.Grid(*inputs)), inputs[0].new_empty(0, dtype=torch.float32)


def _windowed_backward(grad, out, lse, *inputs) -> list[Tensor | None]:
    return windowed.backward(grad, windowed.Grid(*inputs))


def _triton(*inputs) -> tuple[Tensor, Tensor]:
    from . import (
        triton,
    )  # imported where it runs: it decides then whether its kernels are compiled or interpreted

    return triton.forward(*inputs)


def _triton_backward(*inputs) -> list[Tensor | None]:
    from . import triton

    return triton.backward(*inputs)


patch_attention_windowed = _register(
    "patch_attention_windowed", _windowed, _windowed_backward, keeps_output=False
)
patch_attention_triton = _register("patch_attention_triton", _triton, _triton_backward, keeps_output=True)
