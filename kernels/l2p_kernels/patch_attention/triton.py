"""Launches the Triton kernels: block sizes, strides, buffers. `triton_kernels.py` has the kernels themselves."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from . import prologue
from . import triton_kernels as kernels

LOG2_E = 1.4426950408889634
GLOBAL_SPLITS = 64  # programs that share the queries when the gradient of a global token is summed


def check_can_run(q: Tensor) -> None:
    """Raises RuntimeError where there is neither a GPU nor Triton's interpreter, ValueError for fp64."""
    interpreted = isinstance(kernels.forward_kernel, InterpretedFunction)
    if interpreted and not isinstance(tl.sum, InterpretedFunction):
        raise RuntimeError(
            "TRITON_INTERPRET=1 was set after Triton was imported; set it before Python starts"
        )
    if q.device.type != "cuda" and not interpreted:
        raise RuntimeError(
            f"impl='triton' needs a GPU tensor, or TRITON_INTERPRET=1 set before Python starts; got {q.device}"
        )
    if q.dtype == torch.float64:
        raise ValueError("impl='triton' takes fp32, fp16 or bf16; got torch.float64")
    if interpreted and q.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter miscomputes bf16 products in silence; use fp16 or fp32 there")


def block_sizes(tile: int, head_dim: int, element_size: int) -> dict[str, int]:
    """Constants of a configuration; checked for spills and shared memory by `python -m l2p_kernels compile`."""
    wide = triton.next_power_of_2(max(16, head_dim))
    # Accumulator, keys and values are [block, wide] each: the block shrinks as the channels grow.
    block = 64 if wide * element_size <= 128 else 32 if wide * element_size <= 512 else 16
    return {"BD": wide, "BQ": min(64, triton.next_power_of_2(max(16, tile * tile))), "BK": block}


def flags(q_norm: Tensor | None, k_norm: Tensor | None, rows: Tensor | None) -> dict[str, bool]:
    return {"NORM_Q": q_norm is not None, "NORM_K": k_norm is not None, "ROPE": rows is not None}


def packed_table(rows: Tensor | None, columns: Tensor | None) -> Tensor | None:
    """`[H + W, 2, head_dim / 4]` fp32: cosines and sines of the rows' angles, then of the columns'."""
    if rows is None:
        return None
    angles = torch.cat((rows.float(), columns.float()))
    return torch.stack((angles.cos(), angles.sin()), dim=1).contiguous()


def _dense(x: Tensor | None) -> Tensor | None:
    """Kernels take any strides but a unit one for channels."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:4]]


def forward(
    q, k, v, global_k, global_v, q_norm, k_norm, rows, columns, tile, halo, scale
) -> tuple[Tensor, Tensor]:
    """Output `[B, H, W, h, d]` and `lse [B, H, W, h]` (base 2, fp32)."""
    batch, height, width, heads, head_dim = q.shape
    q, k, v = _dense(q), _dense(k), _dense(v)
    global_k, global_v = (None if x is None else x.contiguous() for x in (global_k, global_v))
    out, lse = (
        torch.empty(q.shape, dtype=q.dtype, device=q.device),
        q.new_empty(q.shape[:4], dtype=torch.float32),
    )
    sizes = block_sizes(tile, head_dim, q.element_size())
    tiles = triton.cdiv(height, tile) * triton.cdiv(width, tile) * triton.cdiv(tile * tile, sizes["BQ"])
    kernels.forward_kernel[(tiles * heads, batch)](
        q, k, v, global_k, global_v, q_norm, k_norm, packed_table(rows, columns), out, lse,
        height, width, heads, 0 if global_k is None else global_k.shape[1], scale * LOG2_E,
        *_strides(q, k, v),
        TILE=tile, HALO=halo, D=head_dim, **sizes, **flags(q_norm, k_norm, rows), GLOBAL=global_k is not None,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return out, lse


def backward(
    grad, out, lse, q, k, v, global_k, global_v, q_norm, k_norm, rows, columns, tile, halo, scale
) -> list[Tensor | None]:
    """Gradients of q, k, v, global_k, global_v, q_norm, k_norm (None where the input is None)."""
    batch, height, width, heads, head_dim = q.shape
    q, k, v, grad = _dense(q), _dense(k), _dense(v), grad.contiguous()
    global_k, global_v = (None if x is None else x.contiguous() for x in (global_k, global_v))
    table = packed_table(rows, columns)
    chosen, sizes = flags(q_norm, k_norm, rows), block_sizes(tile, head_dim, q.element_size())
    options = {"D": head_dim, **sizes, "num_warps": 4, "num_stages": 1}
    scores_scale = scale * LOG2_E

    delta = torch.empty_like(lse)
    kept = {
        x: torch.float32 if norm is not None or table is not None else q.dtype
        for x, norm in (("q", q_norm), ("k", k_norm))
    }
    grad_q, grad_k = (torch.empty(q.shape, dtype=kept[x], device=q.device) for x in "qk")
    grad_v = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    num_global = 0 if global_k is None else global_k.shape[1]
    tiles = triton.cdiv(height, tile) * triton.cdiv(width, tile) * triton.cdiv(tile * tile, sizes["BQ"])
    kernels.grad_q_kernel[(tiles * heads, batch)](
        q, k, v, global_k, global_v, q_norm, k_norm, table, out, lse, grad, delta, grad_q,
        height, width, heads, num_global, scores_scale, scale, *_strides(q, k, v),
        TILE=tile, HALO=halo, GLOBAL=global_k is not None, **chosen, **options,
    )  # fmt: skip
    shift = halo % tile - tile if halo % tile else 0
    blocks = (
        triton.cdiv(height - shift, tile)
        * triton.cdiv(width - shift, tile)
        * triton.cdiv(tile * tile, sizes["BK"])
    )
    kernels.grad_kv_kernel[(blocks * heads, batch)](
        q, k, v, q_norm, k_norm, table, lse, grad, delta, grad_k, grad_v,
        height, width, heads, scores_scale, scale, *_strides(q, k, v),
        TILE=tile, HALO=halo, **chosen, **options,
    )  # fmt: skip

    grad_global_k = grad_global_v = None
    if global_k is not None:
        each = triton.cdiv(height * width, GLOBAL_SPLITS)
        each = triton.cdiv(each, sizes["BQ"]) * sizes["BQ"]
        splits = triton.cdiv(height * width, each)
        parts = [q.new_empty((splits, *global_k.shape), dtype=torch.float32) for _ in "kv"]
        kernels.grad_global_kernel[(splits, triton.cdiv(num_global, sizes["BK"]) * heads, batch)](
            q, global_k, global_v, q_norm, table, lse, grad, delta, *parts,
            height, width, heads, num_global, each, scores_scale, scale, *_strides(q),
            NORM_Q=chosen["NORM_Q"], ROPE=chosen["ROPE"], **options,
        )  # fmt: skip
        grad_global_k, grad_global_v = (part.sum(0).to(q.dtype) for part in parts)

    grads, norms = [grad_q, grad_k], [None, None]
    for index, (x, norm) in enumerate(((q, q_norm), (k, k_norm))):
        if norm is not None or table is not None:
            turned, grads[index] = grads[index], torch.empty(q.shape, dtype=q.dtype, device=q.device)
            total = None if norm is None else torch.zeros_like(norm, dtype=torch.float32)
            prologue.backward_into(grads[index], turned, x, norm, total, rows, columns)
            norms[index] = None if norm is None else total.to(norm.dtype)
    return [*grads, grad_v, grad_global_k, grad_global_v, *norms]
