"""Launches the kernels of `impl="triton_strips"`: descriptors, strips, buffers. `strips_kernels.py` has the kernels themselves."""

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import strips_kernels as kernels
from .op import HALO, TILE

LOG2_E = 1.4426950408889634
PROGRAMS_A_MULTIPROCESSOR = 2  # what registers allow of the forward kernel


def options(kernel: str, capability: int | None) -> dict[str, int]:
    """Constants, warps and stages by `major * 10 + minor` (None: not an NVIDIA GPU).

    `python -m l2p_kernels compile` checks them: without wgmma or tcgen05 operands lie in registers too, and half a tile fits.
    """
    tensor_memory = capability in (100, 103)
    chosen = {"HELD": 8 if capability == 90 or tensor_memory else 4, "UNROLL": 4 if tensor_memory else 1}
    if kernel == "forward":
        walks = capability == 90
        return {"num_warps": 4, "num_stages": 2 if walks else 1, "WALK": walks, **chosen}
    if kernel == "grad_kv" and capability in (80, 86, 89):
        chosen["HELD"] = 2  # where descriptors become pointers
    return {"num_warps": 4, "num_stages": 1, **chosen}


def _capability(x: Tensor) -> int | None:
    if not x.is_cuda or torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability(x.device)
    return major * 10 + minor


def _each(x: Tensor, rows: int, length: int) -> int:
    """Tiles of a strip: as long as gives every multiprocessor its programs. `rows` rows of `length` tiles in all."""
    room = 8
    if x.is_cuda:
        room = PROGRAMS_A_MULTIPROCESSOR * torch.cuda.get_device_properties(x.device).multi_processor_count
    return triton.cdiv(length, max(1, min(length, room // rows)))


def _described(x: Tensor, rows: int) -> TensorDescriptor:
    """Blocks `[1, rows, 8, D]` of a plane, or `[1, rows, 8, 1, D]` of a grid with heads."""
    return TensorDescriptor.from_tensor(x, [1, rows, TILE, *[1] * (x.ndim - 4), x.shape[-1]])


def _aligned(x: Tensor) -> Tensor:
    """A descriptor takes a unit stride for channels, and others of whole 16 bytes."""
    units = [stride * x.element_size() % 16 for stride in x.stride()[:-1]]
    fits = x.stride(-1) == 1 and not any(units) and x.data_ptr() % 16 == 0
    return x if fits and 0 not in x.stride() else x.contiguous()


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def turned(q, k, q_norm, k_norm, rows, columns, scale) -> tuple[Tensor, Tensor, Tensor | None]:
    """q times the scale in base 2, and k, `[B h, H, W, D]`, normed and turned, pairs of channels side by side; the table."""
    batch, height, width, heads, head_dim = q.shape
    table = None
    if rows is not None:
        pairs = head_dim // 4
        table = torch.empty(height + width, 2, pairs, dtype=torch.float32, device=q.device)
        kernels.table_kernel[(height + width,)](
            rows.contiguous(), columns.contiguous(), table, height, width, N=pairs, BN=pairs, num_warps=1
        )
    q_out, k_out = (
        torch.empty(batch * heads, height, width, head_dim, dtype=q.dtype, device=q.device) for _ in "qk"
    )
    kernels.turn_kernel[(triton.cdiv(height * width, 64) * heads, batch)](
        q, k, q_out, k_out, q_norm, k_norm, table, height, width, heads, scale * LOG2_E,
        *q.stride()[:4], *k.stride()[:4],
        D=head_dim, NORM_Q=q_norm is not None, NORM_K=k_norm is not None, ROPE=table is not None, num_warps=4,
    )  # fmt: skip
    return q_out, k_out, table


def forward(q, k, v, q_norm, k_norm, rows, columns, tile, halo, scale) -> tuple[Tensor, ...]:
    """Output `[B, H, W, h, D]`; `lse [B h, tiles, 64]` (base 2, fp32), of tiles in full; and what :func:`turned` gives."""
    batch, height, width, heads, head_dim = q.shape
    q, k, v = _dense(q), _dense(k), _aligned(v)
    q_turned, k_turned, table = turned(q, k, q_norm, k_norm, rows, columns, scale)
    tiles_y, tiles_x = triton.cdiv(height, TILE), triton.cdiv(width, TILE)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch * heads, tiles_y * tiles_x, TILE * TILE, dtype=torch.float32, device=q.device)
    chosen = options("forward", _capability(q))
    rows_of_keys, strips_y = (2 if chosen["WALK"] else 1) * TILE, tiles_y * (TILE // chosen["HELD"])
    each = _each(q, strips_y * heads * batch, tiles_x)
    kernels.forward_kernel[(strips_y * triton.cdiv(tiles_x, each) * heads, batch)](
        _described(q_turned, chosen["HELD"]), _described(k_turned, rows_of_keys), _described(v, rows_of_keys), out, lse,
        height, width, heads, each, D=head_dim, **chosen,
    )  # fmt: skip
    return out, lse, q_turned, k_turned, q.new_empty(0, dtype=torch.float32) if table is None else table


def backward(
    grad, out, lse, q_turned, k_turned, table, q, k, v, q_norm, k_norm, rows, columns, tile, halo, scale
) -> list[Tensor | None]:
    """Gradients of q, k, v, q_norm, k_norm (None where the input is None). Three launches for a contiguous `grad`."""
    batch, height, width, heads, head_dim = q.shape
    q, k, v, grad = _dense(q), _dense(k), _aligned(v), _aligned(grad)
    of_q, of_kv = (options(kernel, _capability(q)) for kernel in ("grad_q", "grad_kv"))
    grad_q, grad_k, grad_v = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in "qkv")
    delta = torch.empty_like(lse)
    switches = {"ROPE": rows is not None, "D": head_dim}

    def strips(extra: int, held: int) -> tuple[tuple[int, int], int, Tensor]:
        """Programs, tiles of a strip, and room for a weight's gradient in parts."""
        rows, tiles = triton.cdiv(height + extra, TILE) * (TILE // held), triton.cdiv(width + extra, TILE)
        each = _each(q, rows * heads * batch, tiles)
        launched = (rows * triton.cdiv(tiles, each) * heads, batch)
        parts = torch.empty(launched[0] * batch, head_dim, dtype=torch.float32, device=q.device)
        return launched, each, parts

    launched, each, sums_q = strips(0, of_q["HELD"])
    kernels.grad_q_kernel[launched](
        _described(q_turned, of_q["HELD"]), _described(k_turned, TILE), _described(v, TILE),
        _described(grad, of_q["HELD"]), _described(out, of_q["HELD"]), lse, delta,
        q, q_norm, table, grad_q, sums_q, height, width, heads, each, scale, *q.stride()[:4],
        NORM=q_norm is not None, **switches, **of_q,
    )  # fmt: skip
    launched, each, sums_k = strips(HALO, of_kv["HELD"])
    kernels.grad_kv_kernel[launched](
        _described(q_turned, TILE), _described(k_turned, of_kv["HELD"]), _described(v, of_kv["HELD"]),
        _described(grad, TILE), lse, delta,
        k, k_norm, table, grad_k, grad_v, sums_k, height, width, heads, each, *k.stride()[:4],
        NORM=k_norm is not None, **switches, **of_kv,
    )  # fmt: skip
    norms = [None if norm is None else torch.empty_like(norm) for norm in (q_norm, k_norm)]
    if q_norm is not None or k_norm is not None:
        kernels.sum_kernel[(2,)](
            sums_q, sums_k, *norms, len(sums_q), len(sums_k),
            D=head_dim, NORM_Q=q_norm is not None, NORM_K=k_norm is not None, num_warps=4,
        )  # fmt: skip
    return [grad_q, grad_k, grad_v, *norms]
