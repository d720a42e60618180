"""Patch attention through FlexAttention: a baseline to compare with. No gradient on a CPU; head_dim a power of two."""

import functools

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from . import prologue


@functools.lru_cache(maxsize=16)
def _mask(height: int, width: int, tile: int, halo: int, num_global: int, device: torch.device) -> BlockMask:
    def seen(b, h, query, key):
        top, left = query // width // tile * tile - halo, query % width // tile * tile - halo
        y, x = key // width, key % width
        local = (y >= top) & (y < top + tile + 2 * halo) & (x >= left) & (x < left + tile + 2 * halo)
        return local | (key >= height * width)

    return create_block_mask(seen, None, None, height * width, height * width + num_global, device=device)


@functools.cache
def _compiled():
    return torch.compile(flex_attention)


def patch_attention_flex(
    q, k, v, global_k, global_v, q_norm, k_norm, rows, columns, tile, halo, scale
) -> Tensor:
    """`[B, H, W, heads, head_dim]` -> the same; compiled on a GPU, eager on a CPU."""
    _, height, width, _, _ = q.shape
    table = None if rows is None else prologue.rope_table(rows, columns, prologue.compute_dtype(q.dtype))
    q, k = (prologue.forward(x, w, table).flatten(1, 2) for x, w in ((q, q_norm), (k, k_norm)))
    v = v.flatten(1, 2)
    if global_k is not None:
        k, v = torch.cat((k, global_k), dim=1), torch.cat((v, global_v), dim=1)
    mask = _mask(height, width, tile, halo, 0 if global_k is None else global_k.shape[1], q.device)
    run = _compiled() if q.device.type == "cuda" else flex_attention
    out = run(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask, scale=scale)
    return out.transpose(1, 2).unflatten(1, (height, width))
