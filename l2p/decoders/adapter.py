"""Latents into a pixel student: a few convolutions on the token grid, and gates that close as the latents get noisier.

The manner is PiD's (arXiv 2605.23902): nearest upsampling to the core's grid, Conv-SiLU-Conv, residual blocks with
GroupNorm, then ``x + sigmoid(W [x, v] - alpha sigma) v`` with ``v`` a linear image of the adapted latents that starts at
zero. A clean latent passes whole, a noisy one hardly: alpha is learnt and starts at 5.

Legend: B batch, h w core grid, N = h w, d values of a latent token, D width of the core, W width of the adapter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OPEN, CLOSING = 2.0, 5.0  # bias of a gate at the start, and alpha
GROUPS = 8
BLOCKS = 4


class LatentAdapter(nn.Module):
    """Latent tokens [B, h, w, d] on the core's grid to what the gates read, [B, N, W].

    Args:
        latent_dim: d.
        width: W, a multiple of 8.
        core_dim: D.
        num_gates: places of the core where latents enter, the pixel head's included.
    """

    def __init__(self, latent_dim: int, width: int, core_dim: int, num_gates: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent_dim, width, 3, padding=1)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(BLOCKS))
        self.gates = nn.ModuleList(SigmaGate(core_dim, width) for _ in range(num_gates))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.conv(F.silu(self.conv_in(tokens.permute(0, 3, 1, 2).to(self.conv.weight.dtype))))
        for block in self.blocks:
            x = block(x)
        return x.flatten(2).transpose(1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions, each after GroupNorm and SiLU, around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(F.silu(norm(hidden)))
        return x + hidden


class SigmaGate(nn.Module):
    """``x + sigmoid(W [x, v] - exp(log_alpha) sigma) v`` with ``v = V lq``; at the start ``V = 0``, so that nothing enters.

    One gate a token.
    """

    def __init__(self, core_dim: int, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, core_dim)
        self.weigh = nn.Linear(2 * core_dim, 1)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(CLOSING)))
        for layer in (self.value, self.weigh):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.weigh.bias, OPEN)

    def forward(self, x: Tensor, lq: Tensor, sigma: Tensor) -> Tensor:
        """x [B, N, D], adapted latents lq [B, N, W] and their noise level sigma [B] in [0, 1]."""
        v = self.value(lq)
        closing = self.log_alpha.float().exp() * sigma.float()[:, None, None]
        gate = torch.sigmoid(self.weigh(torch.cat([x, v.to(x.dtype)], dim=-1)).float() - closing)
        return x + (gate * v).to(x.dtype)
