"""The block of the patch head: attention among fine tokens near each other, then a mixing of neighbours.

Legend: H W fine grid, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def norm(x: Tensor) -> Tensor:
    """LayerNorm without weights, as what follows has its own; on a CPU, RMSNorm takes six times longer."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def scaled_norm(x: Tensor, scale: Tensor) -> Tensor:
    """``norm(x) * scale`` of x [B, H, W, C], scale [B, 1, 1, C]; of one picture on a GPU in one pass."""
    if len(x) == 1 and x.device.type == "cuda" and not torch.is_grad_enabled() and scale.dtype == x.dtype:
        return F.layer_norm(x, x.shape[-1:], scale.flatten(), eps=1e-6)
    return norm(x) * scale


def gated_sum(x: Tensor, gate: Tensor, values: Tensor, linear: nn.Linear) -> Tensor:
    """``x + gate * linear(values)`` of x [B, H, W, C], gate [B, 1, 1, C], a layer without bias; of one picture on a GPU by one
    product, the gate in its weight."""
    one_dtype = x.dtype == gate.dtype == values.dtype == linear.weight.dtype
    if len(x) == 1 and x.device.type == "cuda" and not torch.is_grad_enabled() and one_dtype:
        return gated_product(x, gate, values, linear.weight)
    return torch.addcmul(x, gate, linear(values))


def gated_product(x: Tensor, gate: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """:func:`gated_sum` of one picture as a product that adds to `x`."""
    out = torch.addmm(x.flatten(0, 2), values.flatten(0, 2), (weight * gate.view(-1, 1)).T)
    return out.view(x.shape)


class PatchBlock(nn.Module):
    """Tile-and-halo attention, then a SwiGLU whose hidden grid passes a depthwise 3x3 convolution.

    The convolution hands values straight to the next fine token, across core patches; only the picture's own
    edge is padded. Both branches are scaled and gated by the time embedding, at step zero by one.

    Args:
        residual_scale: factor on the branches' last layers at the start: depth must not blow up the sum.
    """

    def __init__(
        self, width: int, time_dim: int, head_dim: int, tile: int, halo: int, residual_scale: float
    ) -> None:
        super().__init__()
        self.head_dim, self.tile, self.halo = head_dim, tile, halo
        hidden = -(-width * 8 // 3 // 16) * 16
        self.modulation = nn.Linear(time_dim, 4 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.Parameter(torch.ones(head_dim))
        self.k_norm = nn.Parameter(torch.ones(head_dim))
        self.proj = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.down = nn.Linear(hidden, width, bias=False)
        with torch.no_grad():
            self.proj.weight.mul_(residual_scale)
            self.down.weight.mul_(residual_scale)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, tile={self.tile}, halo={self.halo}"

    def forward(
        self, x: Tensor, c: Tensor, rope: tuple[Tensor, Tensor], attended: slice, mixed: slice
    ) -> Tensor:
        """x [B, H, W, C], SiLU of the time embedding c [B, time_dim], angles of the grid -> [B, H', W, C].

        Args:
            attended: rows of x that go on from the attention to the rest.
            mixed: rows of these that are given back.
        """
        from l2p_kernels import patch_attention

        scale_a, gate_a, scale_m, gate_m = (1 + self.modulation(c))[:, None, None].chunk(4, dim=-1)
        qkv = self.qkv(scaled_norm(x, scale_a)).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = qkv.unbind(3)  # [B, H, W, heads, head_dim]
        heads = patch_attention(
            q,
            k,
            v,
            tile=self.tile,
            halo=self.halo,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            rope=rope,
        )
        del qkv, q, k, v
        x = gated_sum(x[:, attended], gate_a, heads[:, attended].flatten(3), self.proj)
        del heads
        gate, up = self.gate_up(scaled_norm(x, scale_m)).chunk(2, dim=-1)
        hidden = (F.silu(gate) * up).permute(0, 3, 1, 2)  # a channels-last view: nothing is copied
        del gate, up
        hidden = self.conv(hidden).permute(0, 2, 3, 1)[:, mixed]
        return gated_sum(x[:, mixed], gate_m, hidden, self.down)
