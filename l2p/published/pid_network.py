"""PiD's published network (arXiv 2605.23902), for inference: noisy pixels, time, caption and latent in, velocity out.

A pixel transformer of two levels (PixelDiT, arXiv 2511.20645): joint attention of patches and caption, then blocks that
modulate every pixel of a patch by its token and attend between patches. The latent joins the patches before every
second joint block, and in version 1.5 also between the two levels, each time through a gate that closes as the latent's
noise grows. Modules carry the published names, so that weights load strictly.

Legend: B batch, N = h w patches, D width, p patch side, P = p^2 pixels a patch, C pixel width, L caption tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2p.published.pid_latent import LatentProjection, SigmaGate
from l2p.published.pid_positions import patch_angles, pixel_positions, rotate, text_angles

EPS = 1e-6
TIME_DIM, TIME_PERIOD, TIME_SCALE = 256, 10.0, 1000.0
TOKENS_AT_ONCE = 4096  # patches whose pixels are modulated at a time: their parameters are 6 P C numbers each


@dataclass(frozen=True)
class PiDSizes:
    """Sizes of a network.

    Attributes:
        hidden_size, num_heads, depth: of the joint blocks.
        pixel_width, pixel_attention_width, pixel_heads, pixel_depth: of the pixel blocks.
        patch_size: p, in pixels of the picture that is written.
        text_width, text_length: of a caption's features, and the tokens that are read at most.
        rope_reference: pixels a side at which rotations are unstretched, see :func:`l2p.published.pid_positions.patch_angles`.
        latent_channels, latent_compression: of the latent, and pixels of *its own* picture a side of a cell.
        unpacking: side of the square of channels that is spread over space first; 1 for none.
        latent_width, num_res_blocks, padding: of the convolutions that read the latent.
        gate: "channel" (one number a channel of a token, version 1) or "token" (one a token, version 1.5).
        interval: joint blocks from one gate to the next.
        pixel_gate: whether the latent also joins before the pixel blocks.
        scale: sides of the picture written, in sides of the latent's own.
    """

    hidden_size: int = 1536
    num_heads: int = 24
    depth: int = 14
    pixel_width: int = 16
    pixel_attention_width: int = 1152
    pixel_heads: int = 16
    pixel_depth: int = 2
    patch_size: int = 16
    text_width: int = 2304
    text_length: int = 300
    rope_reference: int = 1024
    latent_channels: int = 16
    latent_compression: int = 8
    unpacking: int = 1
    latent_width: int = 512
    num_res_blocks: int = 4
    padding: str = "zeros"
    gate: str = "channel"
    interval: int = 2
    pixel_gate: bool = False
    scale: int = 4


class SwiGLU(nn.Module):
    """``w2(silu(w1 x) * w3 x)`` with two thirds of four widths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 * (4 * width) / 3)
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class JointAttention(nn.Module):
    """One softmax over caption and patches; each stream has its own projections and norms."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for stream in "xy":
            setattr(self, f"qkv_{stream}", nn.Linear(width, 3 * width, bias=False))
            setattr(self, f"q_norm_{stream}", nn.RMSNorm(width // heads, eps=EPS))
            setattr(self, f"k_norm_{stream}", nn.RMSNorm(width // heads, eps=EPS))
            setattr(self, f"proj_{stream}", nn.Linear(width, width))

    def forward(self, x: Tensor, y: Tensor, angles_x: Tensor, angles_y: Tensor) -> tuple[Tensor, Tensor]:
        text = self._project(y, self.qkv_y, self.q_norm_y, self.k_norm_y, angles_y)
        image = self._project(x, self.qkv_x, self.q_norm_x, self.k_norm_x, angles_x)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(text, image, strict=True))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj_x(out[:, y.shape[1] :]), self.proj_y(out[:, : y.shape[1]])

    def _project(
        self, x: Tensor, qkv: nn.Module, q_norm: nn.Module, k_norm: nn.Module, angles: Tensor
    ) -> tuple[Tensor, ...]:
        return rotated_heads(qkv(x), self.heads, q_norm, k_norm, angles)


class JointBlock(nn.Module):
    """Attention and SwiGLU for patches x and caption y, all modulated by the time alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = JointAttention(width, heads)
        for stream, name in (("x", "img"), ("y", "txt")):
            setattr(self, f"norm_{stream}1", nn.RMSNorm(width, eps=EPS))
            setattr(self, f"norm_{stream}2", nn.RMSNorm(width, eps=EPS))
            setattr(self, f"mlp_{stream}", SwiGLU(width))
            setattr(self, f"adaLN_modulation_{name}", nn.Sequential(nn.Linear(width, 6 * width)))

    def forward(
        self, x: Tensor, y: Tensor, c: Tensor, angles_x: Tensor, angles_y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x [B, N, D], y [B, L, D], c [B, 1, D], angles [N or L, head_dim / 2]."""
        ax, ay = (m(c).chunk(6, dim=-1) for m in (self.adaLN_modulation_img, self.adaLN_modulation_txt))
        dx, dy = self.attn(
            modulate(self.norm_x1(x), *ax[:2]), modulate(self.norm_y1(y), *ay[:2]), angles_x, angles_y
        )
        x, y = x + ax[2] * dx, y + ay[2] * dy
        x = x + ax[5] * self.mlp_x(modulate(self.norm_x2(x), *ax[3:5]))
        y = y + ay[5] * self.mlp_y(modulate(self.norm_y2(y), *ay[3:5]))
        return x, y


class PatchAttention(nn.Module):
    """Attention between patches, each one token of ``width``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.RMSNorm(width // heads, eps=EPS)
        self.k_norm = nn.RMSNorm(width // heads, eps=EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = rotated_heads(self.qkv(x), self.heads, self.q_norm, self.k_norm, angles)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class PixelMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PixelBlock(nn.Module):
    """Every pixel of a patch, shifted, scaled and gated by six numbers a channel that the patch's token gives it."""

    def __init__(self, sizes: PiDSizes) -> None:
        super().__init__()
        width, pixels = sizes.pixel_width, sizes.patch_size**2
        self.compress_to_attn = nn.Linear(pixels * width, sizes.pixel_attention_width)
        self.expand_from_attn = nn.Linear(sizes.pixel_attention_width, pixels * width)
        self.norm1 = nn.RMSNorm(width, eps=EPS)
        self.attn = PatchAttention(sizes.pixel_attention_width, sizes.pixel_heads)
        self.norm2 = nn.RMSNorm(width, eps=EPS)
        self.mlp = PixelMLP(width)
        self.adaLN_modulation = nn.Sequential(nn.Linear(sizes.hidden_size, 6 * width * pixels))

    def forward(self, x: Tensor, s: Tensor, angles: Tensor) -> Tensor:
        """x [B, N, P, C], tokens s [B, N, D]; a few thousand patches at a time, since each has 6 P C parameters."""
        parts = range(0, x.shape[1], TOKENS_AT_ONCE)
        spans = [slice(start, start + TOKENS_AT_ONCE) for start in parts]
        tokens = []
        for span in spans:
            shift, scale = self._modulation(s[:, span], 0, 2)
            tokens.append(self.compress_to_attn(modulate(self.norm1(x[:, span]), shift, scale).flatten(2)))
        attended = self.attn(torch.cat(tokens, dim=1), angles)
        out = []
        for span in spans:
            gate, shift, scale, gate_mlp = self._modulation(s[:, span], 2, 6)
            part = x[:, span] + gate * self.expand_from_attn(attended[:, span]).unflatten(2, x.shape[2:])
            out.append(part + gate_mlp * self.mlp(modulate(self.norm2(part), shift, scale)))
        return torch.cat(out, dim=1)

    def _modulation(self, s: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """Those of the six parameters, [B, n, P, C] each: within a pixel's 6 C numbers they follow one another."""
        layer, width = self.adaLN_modulation[0], self.norm1.weight.shape[0]
        weight, bias = (
            t.unflatten(0, (-1, 6, width))[:, first:last].flatten(0, 2) for t in (layer.weight, layer.bias)
        )
        return F.linear(s, weight, bias).unflatten(-1, (-1, last - first, width)).unbind(-2)


class Embedder(nn.Module):
    """A linear layer, and a norm behind it for the caption."""

    def __init__(self, inputs: int, width: int, norm: bool = False) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, width)
        if norm:
            self.norm = nn.RMSNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return self.norm(x) if hasattr(self, "norm") else x


class TimeEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_DIM, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Times [B] in [0, 1], 1 is noise, to [B, D]."""
        half = TIME_DIM // 2
        rates = TIME_PERIOD ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
        angles = TIME_SCALE * t.double()[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.mlp[0].weight.dtype))


class FinalLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.linear = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class PiDNet(nn.Module):
    """The whole network; see the module's docstring."""

    def __init__(self, sizes: PiDSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.hidden_size
        self.pixel_embedder = Embedder(3, sizes.pixel_width)
        self.s_embedder = Embedder(3 * sizes.patch_size**2, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = Embedder(sizes.text_width, width, norm=True)
        self.y_pos_embedding = nn.Parameter(torch.randn(1, sizes.text_length, width))
        self.patch_blocks = nn.ModuleList(JointBlock(width, sizes.num_heads) for _ in range(sizes.depth))
        self.pixel_blocks = nn.ModuleList(PixelBlock(sizes) for _ in range(sizes.pixel_depth))
        self.final_layer = FinalLayer(sizes.pixel_width)
        self.lq_proj = LatentProjection(sizes)
        if sizes.pixel_gate:
            self.pit_lq_gate = SigmaGate(width, sizes.gate)

    def forward(
        self, x_t: Tensor, t: Tensor, prompt_embeds: Tensor, latents: Tensor, sigma: Tensor
    ) -> Tensor:
        """Velocity ``eps - x_0`` [B, 3, H, W].

        Args:
            x_t: [B, 3, H, W], sides multiples of p.
            t: [B], 1 is noise.
            prompt_embeds: [B, L, text_width]; tokens beyond ``text_length`` are not read, and L may be 0.
            latents: [B, latent_channels, h, w] of the picture that is ``scale`` times smaller.
            sigma: [B], the noise in them.
        """
        sizes, p = self.sizes, self.sizes.patch_size
        dtype = self.s_embedder.proj.weight.dtype
        height, width = x_t.shape[2] // p, x_t.shape[3] // p
        x_t, latents, y = x_t.to(dtype), latents.to(dtype), prompt_embeds[:, : sizes.text_length].to(dtype)
        inputs = self.lq_proj(latents, height, width)

        time = self.t_embedder(t)[:, None]
        y = self.y_embedder(y) + self.y_pos_embedding[:, : y.shape[1]]
        s = self.s_embedder(F.unfold(x_t, p, stride=p).transpose(1, 2))
        head_dim = sizes.hidden_size // sizes.num_heads
        grid = (height, width, sizes.rope_reference // p, x_t.device)
        angles_x, angles_y = patch_angles(head_dim, *grid), text_angles(head_dim, y.shape[1], x_t.device)
        c = F.silu(time)
        for number, block in enumerate(self.patch_blocks):
            if number % sizes.interval == 0:
                place = number // sizes.interval
                s = self.lq_proj.gate_modules[place](s, inputs[place], sigma)
            s, y = block(s, y, c, angles_x, angles_y)
        s = F.silu(time + s)
        if sizes.pixel_gate:
            s = self.pit_lq_gate(s, inputs[-1], sigma)

        x = self.pixel_embedder(x_t.permute(0, 2, 3, 1))
        x = x + pixel_positions(sizes.pixel_width, *x.shape[1:3], x.device).to(x.dtype)
        x = x.unflatten(1, (height, p)).unflatten(3, (width, p)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        angles = patch_angles(sizes.pixel_attention_width // sizes.pixel_heads, *grid)
        for block in self.pixel_blocks:
            x = block(x, s, angles)
        x = self.final_layer(x).unflatten(1, (height, width)).unflatten(3, (p, p))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def rotated_heads(
    qkv: Tensor, heads: int, q_norm: nn.Module, k_norm: nn.Module, angles: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, n, 3 D] to q, k, v [B, heads, n, head_dim], q and k normed and rotated."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(2)
    return (
        rotate(q_norm(q), angles).transpose(1, 2),
        rotate(k_norm(k), angles).transpose(1, 2),
        v.transpose(1, 2),
    )
