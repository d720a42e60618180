"""Makes a PyTorch operator of a pair of functions, so that models holding it compile with fullgraph and export."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def guarded(function: Callable) -> Callable:
    """`function` with autocast off and the device of its first argument current, which Triton launches on."""

    def run(*args):
        device = args[0].device
        current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with current, torch.autocast(device.type, enabled=False):
            return function(*args)

    return run


def register(
    name: str,
    inputs: str,
    *,
    forward: Callable,
    backward: Callable,
    fake: Callable,
    flops: Callable,
    tensors: int,
    gradients: int,
    outputs: int = 1,
    keep_outputs: bool = False,
) -> Callable:
    """Registers `l2p_kernels::{name}` and `l2p_kernels::{name}_backward` with fakes, gradient and operation counts.

    Args:
        inputs: the schema of the inputs; first `tensors` tensors (the first `gradients` of them with a gradient), then
            numbers.
        forward: `(*inputs) -> outputs`, a tensor or a tuple of `outputs` tensors. Autocast is off inside.
        backward: `(gradient of the first output, *outputs or Nones, *inputs) -> gradients`, a list with
            None where an input is None.
        fake: `(*inputs) -> outputs` without data.
        flops: `(*input shapes and numbers) -> (forward, backward)` operations.
        keep_outputs: whether the outputs are kept for the backward pass.
    """

    run = guarded(forward)
    run_backward = guarded(lambda *args: [grad for grad in backward(*args) if grad is not None])

    returns = "Tensor" if outputs == 1 else "(" + ", ".join(["Tensor"] * outputs) + ")"
    op = torch.library.custom_op(
        f"l2p_kernels::{name}", run, mutates_args=(), schema=f"({inputs}) -> {returns}"
    )
    before = ["Tensor grad", *(f"Tensor? out_{i}" for i in range(outputs))]
    backward_op = torch.library.custom_op(
        f"l2p_kernels::{name}_backward",
        run_backward,
        mutates_args=(),
        schema=f"({', '.join(before)}, {inputs}) -> Tensor[]",
    )
    op.register_fake(fake)
    skipped = len(before)

    @backward_op.register_fake
    def _(*args):
        return [x.new_empty(x.shape) for x in args[skipped : skipped + gradients] if x is not None]

    def setup_context(ctx, inputs, output):
        kept = (output,) if outputs == 1 else output
        ctx.save_for_backward(*(kept if keep_outputs else [None] * outputs), *inputs[:tensors])
        ctx.numbers = inputs[tensors:]

    def differentiate(ctx, *grads):
        saved = ctx.saved_tensors
        found = iter(backward_op(grads[0], *saved, *ctx.numbers))
        wanted = saved[outputs : outputs + gradients]
        missing = [None] * (tensors - gradients + len(ctx.numbers))
        return *(None if x is None else next(found) for x in wanted), *missing

    op.register_autograd(differentiate, setup_context=setup_context)

    @register_flop_formula(getattr(torch.ops.l2p_kernels, name))
    def _(*args, out_shape=None, **_):
        return flops(*args)[0]

    @register_flop_formula(getattr(torch.ops.l2p_kernels, f"{name}_backward"))
    def _(*args, out_shape=None, **_):
        return flops(*args[skipped:])[1]

    return op


def floating(name: str, x: Tensor, shape: tuple, like: Tensor, what: str) -> None:
    """Raises ValueError unless `x` is floating point, of this shape, on the device of `like`."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(
            f"{name} must be {list(shape)} to go with {what} {list(like.shape)}; got {list(x.shape)}"
        )
    if x.device != like.device:
        raise ValueError(f"{name} must be on {what}'s device {like.device}; got {x.device}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point; got {x.dtype}")
