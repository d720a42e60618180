"""Launches the Triton kernels: block sizes, strides, buffers. `triton_kernels.py` has the kernels themselves."""

import torch
import triton
from torch import Tensor

from . import prologue
from . import triton_kernels as kernels

LOG2_E = 1.4426950408889634
HOLDS_QUERIES = ("forward", "grad_q")


def options(kernel: str, tile: int, head_dim: int, element_size: int, major: int | None) -> dict[str, int]:
    """Block sizes and warps of a kernel; `python -m l2p_kernels compile` checks them for spills and shared memory.

    A program holds one block (queries, or keys for their gradients) and streams the other past it. The held side is 64
    rows where the tile has them: the least that wgmma and tcgen05 multiply. The streamed side bounds the registers.
    """
    wide = triton.next_power_of_2(max(16, head_dim))
    held = min(64, triton.next_power_of_2(max(16, tile * tile)))
    streamed = max(16, min(64, 4096 // (wide * element_size))) if kernel in HOLDS_QUERIES else 16
    queries, keys = (held, streamed) if kernel in HOLDS_QUERIES else (streamed, held)
    # One stage spends the fewest registers, except where pipelining moves wgmma's held operands to shared memory.
    # `major`: of an NVIDIA GPU's capability.
    pipelined = {
        8: wide == 32 and kernel == "forward",
        9: wide > 64 and kernel not in HOLDS_QUERIES,
        12: wide == 64 and kernel == "forward",
    }
    stages = 2 if pipelined.get(major) else 1
    return {"BD": wide, "BQ": queries, "BK": keys, "num_warps": 4 if wide <= 64 else 8, "num_stages": stages}


def _major(x: Tensor) -> int | None:
    on_nvidia = x.is_cuda and torch.version.hip is None
    return torch.cuda.get_device_capability(x.device)[0] if on_nvidia else None


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


def forward(q, k, v, q_norm, k_norm, rows, columns, tile, halo, scale) -> tuple[Tensor, Tensor]:
    """Output `[B, H, W, h, d]` and `lse [B, H, W, h]` (base 2, fp32)."""
    batch, height, width, heads, head_dim = q.shape
    q, k, v = _dense(q), _dense(k), _dense(v)
    out, lse = (
        torch.empty(q.shape, dtype=q.dtype, device=q.device),
        q.new_empty(q.shape[:4], dtype=torch.float32),
    )
    chosen = options("forward", tile, head_dim, q.element_size(), _major(q))
    tiles = triton.cdiv(height, tile) * triton.cdiv(width, tile) * triton.cdiv(tile * tile, chosen["BQ"])
    kernels.forward_kernel[(tiles * heads, batch)](
        q, k, v, q_norm, k_norm, packed_table(rows, columns), out, lse,
        height, width, heads, scale * LOG2_E,
        *_strides(q, k, v),
        TILE=tile, HALO=halo, D=head_dim, **flags(q_norm, k_norm, rows), **chosen,
    )  # fmt: skip
    return out, lse


def backward(
    grad, out, lse, q, k, v, q_norm, k_norm, rows, columns, tile, halo, scale
) -> list[Tensor | None]:
    """Gradients of q, k, v, q_norm, k_norm (None where the input is None)."""
    batch, height, width, heads, head_dim = q.shape
    q, k, v, grad = _dense(q), _dense(k), _dense(v), grad.contiguous()
    table = packed_table(rows, columns)
    switches = flags(q_norm, k_norm, rows)
    for_q, for_kv = (
        options(kernel, tile, head_dim, q.element_size(), _major(q)) for kernel in ("grad_q", "grad_kv")
    )
    scores_scale = scale * LOG2_E

    delta = torch.empty_like(lse)
    kept = {
        x: torch.float32 if norm is not None or table is not None else q.dtype
        for x, norm in (("q", q_norm), ("k", k_norm))
    }
    grad_q, grad_k = (torch.empty(q.shape, dtype=kept[x], device=q.device) for x in "qk")
    grad_v = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tiles = triton.cdiv(height, tile) * triton.cdiv(width, tile) * triton.cdiv(tile * tile, for_q["BQ"])
    kernels.grad_q_kernel[(tiles * heads, batch)](
        q, k, v, q_norm, k_norm, table, out, lse, grad, delta, grad_q,
        height, width, heads, scores_scale, scale, *_strides(q, k, v),
        TILE=tile, HALO=halo, D=head_dim, **switches, **for_q,
    )  # fmt: skip
    shift = halo % tile - tile if halo % tile else 0
    blocks = (
        triton.cdiv(height - shift, tile)
        * triton.cdiv(width - shift, tile)
        * triton.cdiv(tile * tile, for_kv["BK"])
    )
    kernels.grad_kv_kernel[(blocks * heads, batch)](
        q, k, v, q_norm, k_norm, table, lse, grad, delta, grad_k, grad_v,
        height, width, heads, scores_scale, scale, *_strides(q, k, v),
        TILE=tile, HALO=halo, D=head_dim, **switches, **for_kv,
    )  # fmt: skip

    grads, norms = [grad_q, grad_k], [None, None]
    for index, (x, norm) in enumerate(((q, q_norm), (k, k_norm))):
        if norm is not None or table is not None:
            turned, grads[index] = grads[index], torch.empty(q.shape, dtype=q.dtype, device=q.device)
            total = None if norm is None else torch.zeros_like(norm, dtype=torch.float32)
            prologue.backward_into(grads[index], turned, x, norm, total, rows, columns)
            norms[index] = None if norm is None else total.to(norm.dtype)
    return [*grads, grad_v, *norms]
