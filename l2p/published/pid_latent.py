"""How PiD's published network reads a latent: convolutions on the patch grid, a linear head a place, and gates.

Legend: B batch, N = h w patches, D width of the transformer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from l2p.published.pid_network import PiDSizes

GROUPS = 4


class SigmaGate(nn.Module):
    """``x + sigmoid(W [x, z] + b - exp(log_alpha) sigma) z``: the noisier the latent, the less of it gets in."""

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        self.content_proj = nn.Linear(2 * dim, {"token": 1, "channel": dim}[kind])
        self.log_alpha = nn.Parameter(torch.tensor(math.log(5.0)))

    def forward(self, x: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """x and z [B, N, D], sigma [B]."""
        kind = torch.promote_types(x.dtype, torch.float32)
        closing = self.log_alpha.to(kind).exp() * sigma.to(x.device, kind)[:, None, None]
        gate = torch.sigmoid(self.content_proj(torch.cat([x, z], dim=-1)).to(kind) - closing)
        return x + gate.to(x.dtype) * z


class ResBlock(nn.Module):
    """x + Conv(SiLU(GroupNorm(Conv(SiLU(GroupNorm(x))))))."""

    def __init__(self, width: int, padding: str) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            _conv(width, width, padding),
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            _conv(width, width, padding),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class LatentProjection(nn.Module):
    """Latents [B, c, h', w'] to one input [B, N, D] for each gate of the joint blocks, and one for the pixel gate."""

    def __init__(self, sizes: PiDSizes) -> None:
        super().__init__()
        self.unpacking = sizes.unpacking
        width, dim = sizes.latent_width, sizes.hidden_size
        self.latent_proj = nn.Sequential(
            _conv(sizes.latent_channels // sizes.unpacking**2, width, sizes.padding),
            nn.SiLU(),
            _conv(width, width, sizes.padding),
            *(ResBlock(width, sizes.padding) for _ in range(sizes.num_res_blocks)),
        )
        places = -(-sizes.depth // sizes.interval)
        self.output_heads = nn.ModuleList(nn.Linear(width, dim) for _ in range(places))
        self.gate_modules = nn.ModuleList(SigmaGate(dim, sizes.gate) for _ in range(places))
        if sizes.pixel_gate:
            self.pit_head = nn.Linear(width, dim)

    def forward(self, latents: Tensor, height: int, width: int) -> list[Tensor]:
        """To a grid of ``height`` x ``width`` patches, to which each cell is repeated."""
        latents = F.pixel_shuffle(latents, self.unpacking)
        x = self.latent_proj(F.interpolate(latents, size=(height, width), mode="nearest"))
        tokens = x.flatten(2).transpose(1, 2)
        heads = [*self.output_heads, *([self.pit_head] if hasattr(self, "pit_head") else [])]
        return [head(tokens) for head in heads]


def _conv(inputs: int, outputs: int, padding: str) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=padding)
