"""adaln in Triton: one program a row forward; backward, one program a run of rows that sums the parameters' gradients.

Legend: B batch, N tokens, D width, BD its power of two. Addresses are int64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLITS = (
    128  # programs a picture in the backward pass: partial sums of the parameters' gradients, added by torch
)


@triton.jit
def load(pointer, c, mask):
    return tl.load(pointer + c, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def normalised(
    x, branch, gate, row, c, mask, eps, D: tl.constexpr, BRANCH: tl.constexpr, LAYER: tl.constexpr
):
    """(total, its norm, 1 / deviation) of one row."""
    total = load(x + row * D, c, mask)
    if BRANCH:
        total += gate * load(branch + row * D, c, mask)
    centred = total
    if LAYER:
        centred = tl.where(mask, total - tl.sum(total, 0) / D, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / D + eps)
    return total, centred * rstd, rstd


@triton.jit
def forward_kernel(
    x, scale, shift, branch, gate, out, total_out, tokens, eps,
    D: tl.constexpr, BD: tl.constexpr, BRANCH: tl.constexpr, LAYER: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    row = batch * tokens + tl.program_id(0)
    c = tl.arange(0, BD)
    mask = c < D
    gates = 0.0
    if BRANCH:
        gates = load(gate + batch * D, c, mask)
    total, y, _ = normalised(x, branch, gates, row, c, mask, eps, D, BRANCH, LAYER)
    y = y * (1 + load(scale + batch * D, c, mask)) + load(shift + batch * D, c, mask)
    tl.store(out + row * D + c, y.to(out.dtype.element_ty), mask=mask)
    if BRANCH:
        tl.store(total_out + row * D + c, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    grad, grad_total, x, scale, branch, gate, grad_x, grad_branch, sums, tokens, rows_each, eps,
    D: tl.constexpr, BD: tl.constexpr, BRANCH: tl.constexpr, LAYER: tl.constexpr,
):  # fmt: skip
    """`sums [B, splits, 3, D]`: partial gradients of scale, shift and gate."""
    split = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BD)
    mask = c < D
    scales = 1 + load(scale + batch * D, c, mask)
    gates = 0.0
    if BRANCH:
        gates = load(gate + batch * D, c, mask)
    sum_scale = tl.zeros([BD], tl.float32)
    sum_shift = tl.zeros([BD], tl.float32)
    sum_gate = tl.zeros([BD], tl.float32)
    for token in range(split * rows_each, tl.minimum((split + 1) * rows_each, tokens)):
        row = batch * tokens + token
        total, y, rstd = normalised(x, branch, gates, row, c, mask, eps, D, BRANCH, LAYER)
        g = load(grad + row * D, c, mask)
        sum_scale += g * y
        sum_shift += g
        g = g * scales
        g = g - y * (tl.sum(g * y, 0) / D)
        if LAYER:
            g = g - tl.sum(g, 0) / D
        g = g * rstd
        if BRANCH:
            g += load(grad_total + row * D, c, mask)
            sum_gate += g * load(branch + row * D, c, mask)
            tl.store(grad_branch + row * D + c, (g * gates).to(grad_branch.dtype.element_ty), mask=mask)
        tl.store(grad_x + row * D + c, g.to(grad_x.dtype.element_ty), mask=mask)
    at = sums + (batch * tl.num_programs(0) + split) * 3 * D + c
    tl.store(at, sum_scale, mask=mask)
    tl.store(at + D, sum_shift, mask=mask)
    tl.store(at + 2 * D, sum_gate, mask=mask)


def constants(width: int, branch: bool, layer_norm: bool) -> dict[str, int | bool]:
    return {"D": width, "BD": triton.next_power_of_2(width), "BRANCH": branch, "LAYER": layer_norm}


def warps(width: int) -> int:
    """A thread holds at most some 16 channels of each operand."""
    return min(16, max(1, triton.next_power_of_2(width) // 512))


def forward(x, scale, shift, branch, gate, layer_norm, eps) -> tuple[Tensor, Tensor]:
    batch, tokens, width = x.shape
    x, scale, shift, branch, gate = (
        None if t is None else t.contiguous() for t in (x, scale, shift, branch, gate)
    )
    out = torch.empty_like(x)
    total = x.new_empty(0) if branch is None else torch.empty_like(x)
    forward_kernel[(tokens, batch)](
        x, scale, shift, branch, gate, out, total, tokens, eps,
        **constants(width, branch is not None, layer_norm), num_warps=warps(width),
    )  # fmt: skip
    return out, total


def backward(
    grad, grad_total, _out, _total, x, scale, shift, branch, gate, layer_norm, eps
) -> list[Tensor | None]:
    """Gradients of x, scale, shift, branch, gate."""
    batch, tokens, width = x.shape
    grad, grad_total, x, scale, branch, gate = (
        None if t is None else t.contiguous() for t in (grad, grad_total, x, scale, branch, gate)
    )
    each = triton.cdiv(tokens, SPLITS)
    splits = triton.cdiv(tokens, each)
    sums = torch.empty(batch, splits, 3, width, dtype=torch.float32, device=x.device)
    grad_x, grad_branch = torch.empty_like(x), None if branch is None else torch.empty_like(branch)
    backward_kernel[(splits, batch)](
        grad, grad_total, x, scale, branch, gate, grad_x, grad_branch, sums, tokens, each, eps,
        **constants(width, branch is not None, layer_norm), num_warps=warps(width),
    )  # fmt: skip
    grad_scale, grad_shift, grad_gate = (sums[:, :, i].sum(1) for i in range(3))
    return [
        grad_x, grad_scale.to(scale.dtype), grad_shift.to(shift.dtype), grad_branch,
        None if gate is None else grad_gate.to(gate.dtype),
    ]  # fmt: skip
