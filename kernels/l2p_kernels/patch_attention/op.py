"""The fast paths as PyTorch operators `torch.ops.l2p_kernels.patch_attention_{windowed,triton,strips}`, with their gradients."""

import torch
from torch import Tensor

from ..dispatch import TRITON_VERSION
from ..registration import register
from . import windowed
from .windows import runs

INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? q_norm, Tensor? k_norm,"
    " Tensor? rows, Tensor? columns, int tile, int halo, float scale"
)


TILE, HALO, HEAD_DIMS = 8, 4, (32, 64)  # what `strips_kernels.py` is written for
FIRST_TRITON = (3, 8)  # 3.6 spills on sm_80 and sm_120, and makes an empty kernel of one on sm_100


def misfit(q: Tensor, tile: int, halo: int) -> str | None:
    """What `impl="triton_strips"` takes and this is not, or None."""
    if (tile, halo) != (TILE, HALO) or q.shape[-1] not in HEAD_DIMS:
        return f"tile 8, halo 4 and a head_dim of 32 or 64; got {tile=}, {halo=} and {q.shape[-1]}"
    if q.device.type == "cuda" and q.dtype == torch.float32:
        return "fp16 or bf16 on a GPU; got torch.float32"
    if q.device.type == "cuda" and TRITON_VERSION < FIRST_TRITON:
        return f"Triton {'.'.join(map(str, FIRST_TRITON))} or newer on a GPU; got {'.'.join(map(str, TRITON_VERSION))}"
    return None


def pairs(height: int, width: int, tile: int, halo: int) -> int:
    """How many (query, key) pairs of one head of one picture are in reach."""
    by_row, by_column = (
        sum(run.size * run.count * run.reach for run in runs(n, tile, halo)) for n in (height, width)
    )
    return by_row * by_column


def _flops(q, k, v, q_norm, k_norm, rows, columns, tile, halo, scale) -> tuple[int, int]:
    """Two matrix products forward, five backward (the scores once more, and four gradients)."""
    batch, height, width, heads, head_dim = q
    product = 2 * batch * heads * head_dim * pairs(height, width, tile, halo)
    return 2 * product, 5 * product


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


def _fake(q, *inputs):
    return q.new_empty(q.shape), q.new_empty(0, dtype=torch.float32)


def _fake_triton(q, *inputs):
    return q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)


def _strips(*inputs) -> tuple[Tensor, ...]:
    from . import strips

    return strips.forward(*inputs)


def _strips_backward(*inputs) -> list[Tensor | None]:
    from . import strips

    return strips.backward(*inputs)


def _fake_strips(q, k, v, q_norm, k_norm, rows, *inputs):
    batch, height, width, heads, head_dim = q.shape
    tiles = (height + TILE - 1) // TILE * ((width + TILE - 1) // TILE)
    lse = q.new_empty((batch * heads, tiles, TILE * TILE), dtype=torch.float32)
    turned = (q.new_empty((batch * heads, height, width, head_dim)) for _ in "qk")
    table = q.new_empty(0 if rows is None else (height + width, 2, head_dim // 4), dtype=torch.float32)
    return q.new_empty(q.shape), lse, *turned, table


_COMMON = {"tensors": 7, "gradients": 5, "flops": _flops}
patch_attention_windowed = register(
    "patch_attention_windowed",
    INPUTS,
    forward=_windowed,
    backward=_windowed_backward,
    fake=_fake,
    outputs=2,
    **_COMMON,
)
patch_attention_triton = register(
    "patch_attention_triton",
    INPUTS,
    forward=_triton,
    backward=_triton_backward,
    fake=_fake_triton,
    outputs=2,
    keep_outputs=True,
    **_COMMON,
)
patch_attention_strips = register(
    "patch_attention_strips",
    INPUTS,
    forward=_strips,
    backward=_strips_backward,
    fake=_fake_strips,
    outputs=5,
    keep_outputs=True,
    **_COMMON,
)
