"""The specification of adaln: plain torch, differentiable; fp32, or fp64 when x is fp64."""

import torch
from torch import Tensor


def adaln_reference(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    layer_norm: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`x [B, N, D]`, `scale`, `shift`, `gate [B, D]` -> (modulated norm, x with the gated branch added)."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x.to(dtype)
    if branch is not None:
        total = total + gate.to(dtype)[:, None] * branch.to(dtype)
    y = total
    if layer_norm:
        y = y - y.mean(-1, keepdim=True)
    y = y * (y.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = y * (1 + scale.to(dtype)[:, None]) + shift.to(dtype)[:, None]
    return y.to(x.dtype), total.to(x.dtype)
