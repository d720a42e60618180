"""The patch head: core tokens opened into fine tokens, refined by local attention across patch borders.

Everything is local, so cost grows with the pixels and nothing here knows the size of the picture.

Legend: h w core grid, H W fine grid, f side of a fine patch in pixels, C width of the head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from l2p.errors import UserError
from l2p.patches import patchify, unpatchify
from l2p.students.heads.linear import clean, final_layer

PIXEL_CHANNELS = 12  # numbers a pixel gets before the last convolution
ROPE_THETA = 100.0  # neighbours are at most a few tiles away: slow rotations would tell them nothing


class PatchHead(nn.Module):
    """Fine tokens from the core and from the noise, a few :class:`PatchBlock`, one linear layer to pixels.

    The linear layer writes each fine patch alone, so its borders would show; a 5x5 convolution over
    :data:`PIXEL_CHANNELS` numbers a pixel mends them. The same convolution adds a draft: the latents that the
    teacher's own final layer reads off the core, seen through a linear map of a token and its eight neighbours. With layer and map from teacher and lift, and all else at zero, an untrained student draws.

    Args:
        core_dim: width of the core's features.
        latent_dim: d, values of the teacher's token.
        time_dim: width of the core's time embedding.
        patch_size: p, pixels a side of a core token.
        fine_patch: f, pixels a side of a fine token, a divisor of p; halving it costs four times the work.
        width: C, a multiple of ``head_dim``.
        num_blocks: each lets a pixel see ``halo`` fine tokens further.
        head_dim: a multiple of 4 (two axes of rotation), 16 to 256.
        tile: fine tokens a side of a tile of queries.
        halo: fine tokens around a tile that its queries see.
        new_final: see :func:`l2p.students.heads.linear.final_layer`.
        latest_noise: see :func:`l2p.students.heads.linear.clean`.
    """

    def __init__(
        self,
        core_dim: int,
        time_dim: int,
        patch_size: int,
        latent_dim: int,
        fine_patch: int = 4,
        width: int = 96,
        num_blocks: int = 3,
        head_dim: int = 32,
        tile: int = 8,
        halo: int = 4,
        new_final: Callable[[int], nn.Module] | None = None,
        latest_noise: float | None = None,
    ) -> None:
        super().__init__()
        if fine_patch < 1 or patch_size % fine_patch:
            raise UserError(f"{fine_patch=} must divide {patch_size=}")
        if head_dim % 4 or not 16 <= head_dim <= 256 or width % head_dim:
            raise UserError(
                f"{width=} must be a multiple of {head_dim=}, itself a multiple of 4 from 16 to 256"
            )
        self.fine_patch = fine_patch
        self.head_dim = head_dim
        self.fold = patch_size // fine_patch  # fine tokens a side of a core token
        self.gradient_checkpointing = False
        self.latest_noise = latest_noise
        self.open = nn.Linear(core_dim, self.fold**2 * width)
        self.embed = nn.Linear(3 * fine_patch**2, width)
        self.blocks = nn.ModuleList(
            PatchBlock(width, time_dim, head_dim, tile, halo, residual_scale=(2 * num_blocks) ** -0.5)
            for _ in range(num_blocks)
        )
        self.out = nn.Linear(width, PIXEL_CHANNELS * fine_patch**2)
        self.conv_out = nn.Conv2d(3 + PIXEL_CHANNELS, 3, 5, padding=2, padding_mode="replicate")
        nn.init.zeros_(self.conv_out.bias)
        nn.init.dirac_(self.conv_out.weight)

        self.patch_size = patch_size
        self.final = final_layer(core_dim, latent_dim, new_final)
        self.readout = nn.Conv2d(latent_dim, 3 * patch_size**2, 3, padding=1)
        self.register_buffer("basis", torch.zeros(3 * patch_size**2, latent_dim))

    def forward(self, features: Tensor, c: Tensor, x_in: Tensor, t: Tensor) -> Tensor:
        x = _spread(self.open(_norm(features)), self.fold)
        x = x + self.embed(patchify(x_in.to(self.embed.weight.dtype), self.fine_patch))
        time, c = c, F.silu(c)
        rope = self._angles(x)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, c, rope, use_reentrant=False)
            else:
                x = block(x, c, rope)
        fine = F.silu(unpatchify(self.out(_norm(x)), self.fine_patch))
        return self.conv_out(torch.cat([self._draft(features, time, x_in, t).to(fine.dtype), fine], dim=1))

    def _draft(self, features: Tensor, c: Tensor, x_in: Tensor, t: Tensor) -> Tensor:
        """The picture of ``z_0 = z_t - t u``, with the velocity u (diffusers' sign is the other) of the core."""
        out = self.final(features.flatten(1, 2), c=c).unflatten(1, features.shape[1:3])
        z_t = patchify(x_in, self.patch_size) @ self.basis.to(x_in.dtype)
        z_0 = clean(z_t, out, t, self.latest_noise)
        z_0 = z_0.to(self.readout.weight.dtype).permute(0, 3, 1, 2)
        return unpatchify(self.readout(z_0).permute(0, 2, 3, 1), self.patch_size)

    def _angles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Angles in radians of the rows [H, head_dim / 4] and columns [W, head_dim / 4] of x [B, H, W, C]."""
        pairs = self.head_dim // 4
        speed = ROPE_THETA ** -(torch.arange(pairs, device=x.device) / pairs)
        rows, columns = (torch.arange(size, device=x.device)[:, None] * speed for size in x.shape[1:3])
        return rows, columns


def _norm(x: Tensor) -> Tensor:
    """LayerNorm without weights, as what follows has its own; on a CPU, RMSNorm takes six times longer."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _spread(tokens: Tensor, fold: int) -> Tensor:
    """Core tokens [B, h, w, fold^2 C] to the fine grid [B, H, W, C], (row, column, channel) order."""
    batch, height, width, _ = tokens.shape
    cells = tokens.view(batch, height, width, fold, fold, -1).transpose(2, 3)
    return cells.reshape(batch, height * fold, width * fold, -1)


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

    def forward(self, x: Tensor, c: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, H, W, C], SiLU of the time embedding c [B, time_dim], angles of the grid -> [B, H, W, C]."""
        from l2p_kernels import patch_attention

        scale_a, gate_a, scale_m, gate_m = (1 + self.modulation(c))[:, None, None].chunk(4, dim=-1)
        qkv = self.qkv(_norm(x) * scale_a).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = qkv.unbind(3)  # [B, H, W, heads, head_dim]
        attended = patch_attention(
            q,
            k,
            v,
            tile=self.tile,
            halo=self.halo,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            rope=rope,
        )
        x = torch.addcmul(x, gate_a, self.proj(attended.flatten(3)))
        gate, up = self.gate_up(_norm(x) * scale_m).chunk(2, dim=-1)
        hidden = (F.silu(gate) * up).permute(0, 3, 1, 2)  # a channels-last view: nothing is copied
        hidden = self.conv(hidden).permute(0, 2, 3, 1)
        return torch.addcmul(x, gate_m, self.down(hidden))
