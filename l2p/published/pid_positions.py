"""Where patches, words and pixels are, as PiD's published network is told.

Legend: B batch, n tokens, h w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0  # of all rotations
SPAN = 16.0  # positions of a side's patches run from 0 to it, however many there are


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Neighbouring numbers of x [B, n, heads, head_dim] turned as pairs by angles [n, head_dim / 2]."""
    kind = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (f.to(kind)[:, None] for f in (angles.cos(), angles.sin()))
    a, b = x.to(kind).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def patch_angles(head_dim: int, height: int, width: int, reference: int, device: torch.device) -> Tensor:
    """fp64 [h w, head_dim / 2]: pairs turn by column and row in turn. The base grows with a side beyond the reference by
    ``(side / reference)^(d / (d - 2))``, d = head_dim / 2, so that far patches turn as at the reference."""
    rates = torch.arange(head_dim // 4, dtype=torch.float64, device=device) * 4 / head_dim
    power = (head_dim // 2) / (head_dim // 2 - 2) if head_dim > 4 else 0.0
    sides = []
    for side in (height, width):
        at = torch.linspace(0, SPAN, side, dtype=torch.float64, device=device)
        sides.append(at[:, None] * (THETA * (side / reference) ** power) ** -rates)
    rows, columns = sides
    both = torch.stack([columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1)
    return both.flatten(2).flatten(0, 1)


def text_angles(head_dim: int, length: int, device: torch.device) -> Tensor:
    """fp64 [L, head_dim / 2]."""
    rates = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    return torch.arange(length, dtype=torch.float64, device=device)[:, None] * THETA**-rates


def pixel_positions(dim: int, height: int, width: int, device: torch.device) -> Tensor:
    """fp64 [H, W, dim]: sines and cosines of the column, then of the row, a quarter of the numbers each."""
    rates = THETA ** -(torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim // 4))
    rows, columns = (
        torch.arange(n, dtype=torch.float64, device=device)[:, None] * rates for n in (height, width)
    )
    rows, columns = (torch.cat([angles.sin(), angles.cos()], dim=-1) for angles in (rows, columns))
    return torch.cat([columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1)
