"""The specification of patch attention: a dense mask over the whole grid, plain torch, differentiable.

Quadratic in the grid: for tests and for reading. Computes in fp32, or in fp64 when the inputs are fp64.
"""

import torch
from torch import Tensor

from . import prologue


def reach(n: int, tile: int, halo: int, device: torch.device | None = None) -> Tensor:
    """`[n, n]` bool: may the query at the row index see the key at the column index, along one axis?"""
    start = torch.arange(n, device=device) // tile * tile
    key = torch.arange(n, device=device)
    return (key >= start[:, None] - halo) & (key < start[:, None] + tile + halo)


def patch_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    tile: int,
    halo: int,
    scale: float,
) -> Tensor:
    """`[B, H, W, heads, head_dim]` -> the same, in q's dtype."""
    batch, height, width, heads, head_dim = q.shape
    dtype = prologue.compute_dtype(q.dtype)
    table = None if rows is None else prologue.rope_table(rows, columns, dtype)
    queries = prologue.forward(q.to(dtype), q_norm, table).flatten(1, 2)
    keys, values = prologue.forward(k.to(dtype), k_norm, table).flatten(1, 2), v.to(dtype).flatten(1, 2)

    rows_seen, columns_seen = reach(height, tile, halo, q.device), reach(width, tile, halo, q.device)
    mask = (rows_seen[:, None, :, None] & columns_seen[None, :, None, :]).reshape(height * width, -1)

    scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) * scale
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    out = torch.einsum("bhqk,bkhd->bqhd", weights, values)
    return out.reshape(batch, height, width, heads, head_dim).to(q.dtype)
