"""The gated residual in Triton: one program a row; backward, one a run of rows, which sums the gate's gradient.

Legend: B batch, N tokens, D width, BD its power of two. Addresses are int64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..adaln.triton import SPLITS, load, warps


@triton.jit
def forward_kernel(x, branch, gate, out, tokens, D: tl.constexpr, BD: tl.constexpr):
    batch = tl.program_id(1).to(tl.int64)
    row = (batch * tokens + tl.program_id(0)) * D
    c = tl.arange(0, BD)
    mask = c < D
    total = load(x + row, c, mask) + load(gate + batch * D, c, mask) * load(branch + row, c, mask)
    tl.store(out + row + c, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    grad, branch, gate, grad_branch, sums, tokens, rows_each, D: tl.constexpr, BD: tl.constexpr
):
    """`sums [B, splits, D]`: partial gradients of the gate. The gradient of x is `grad`."""
    split = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BD)
    mask = c < D
    gates = load(gate + batch * D, c, mask)
    total = tl.zeros([BD], tl.float32)
    for token in range(split * rows_each, tl.minimum((split + 1) * rows_each, tokens)):
        row = (batch * tokens + token) * D
        g = load(grad + row, c, mask)
        total += g * load(branch + row, c, mask)
        tl.store(grad_branch + row + c, (g * gates).to(grad_branch.dtype.element_ty), mask=mask)
    tl.store(sums + (batch * tl.num_programs(0) + split) * D + c, total, mask=mask)


def constants(width: int) -> dict[str, int]:
    return {"D": width, "BD": triton.next_power_of_2(width)}


def forward(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    x, branch, gate = (t.contiguous() for t in (x, branch, gate))
    out = torch.empty_like(x)
    forward_kernel[(tokens, batch)](x, branch, gate, out, tokens, **constants(width), num_warps=warps(width))
    return out


def backward(grad: Tensor, _out, x: Tensor, branch: Tensor, gate: Tensor) -> list[Tensor]:
    """Gradients of x, branch, gate."""
    batch, tokens, width = x.shape
    grad, branch, gate = (t.contiguous() for t in (grad, branch, gate))
    each = triton.cdiv(tokens, SPLITS)
    splits = triton.cdiv(tokens, each)
    sums = torch.empty(batch, splits, width, dtype=torch.float32, device=x.device)
    grad_branch = torch.empty_like(branch)
    backward_kernel[(splits, batch)](
        grad, branch, gate, grad_branch, sums, tokens, each, **constants(width), num_warps=warps(width)
    )
    # A copy: an operator must not return its input.
    return [grad.clone(), grad_branch, sums.sum(1).to(gate.dtype)]
