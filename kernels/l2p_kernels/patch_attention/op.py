"""The fast paths as PyTorch operators `torch.ops.l2p_kernels.patch_attention_{windowed,triton}`, with their gradients."""

import torch
from torch import Tensor

from ..registration import register
from . import windowed
from .windows import runs

INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? q_norm, Tensor? k_norm,"
    " Tensor? rows, Tensor? columns, int tile, int halo, float scale"
)


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


_COMMON = {"tensors": 7, "gradients": 5, "outputs": 2, "flops": _flops}
patch_attention_windowed = register(
    "patch_attention_windowed", INPUTS, forward=_windowed, backward=_windowed_backward, fake=_fake, **_COMMON
)
patch_attention_triton = register(
    "patch_attention_triton",
    INPUTS,
    forward=_triton,
    backward=_triton_backward,
    fake=_fake_triton,
    keep_outputs=True,
    **_COMMON,
)
