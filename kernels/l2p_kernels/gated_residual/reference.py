"""The specification of the gated residual: plain torch, differentiable; fp32, or fp64 when x is fp64."""

import torch
from torch import Tensor


def gated_residual_reference(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """`x`, `branch [B, N, D]`, `gate [B, D]` -> `[B, N, D]` in x's dtype."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x.to(dtype) + gate.to(dtype)[:, None] * branch.to(dtype)).to(x.dtype)
