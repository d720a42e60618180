"""The U-Net head of L2P (arXiv 2605.12013, its "detailer"): full-resolution convolutions around the core."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2p import flow
from l2p.errors import UserError

WRITES = ("x_0", "minus_velocity")


class UNetHead(nn.Module):
    """Encoder of the noisy picture down to the token grid, the core joined there, and a decoder back up.

    At ``width=64`` and patches of 16 px it is the published head of 1024 px: down 3-64-128-256-512, a 1x1 bottleneck
    over 512 and the core's width, up 512-256-128-64-64, out 64-3. At ``width=16``, ``widest=32`` and patches of 64 px it is
    that of 4096 px: down 3-16-32-64-128-256-512, up 512-256-128-64-32-16-16, out 16-3.

    Args:
        core_dim: width of the core's features, read as they leave the last block.
        patch_size: a power of two; one level a factor of two.
        width: channels at full resolution, doubled a level; sets memory and time.
        widest: channels at most, in widths.
        writes: "x_0", or "minus_velocity" as the published weights do: ``x_0 - eps``, from which x_0 follows.
    """

    def __init__(
        self, core_dim: int, patch_size: int, width: int = 64, widest: int = 8, writes: str = "x_0"
    ) -> None:
        super().__init__()
        if writes not in WRITES:
            raise UserError(f"the unet head writes {writes!r}, expected one of {', '.join(WRITES)}")
        self.writes = writes
        levels = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 1 << levels:
            raise UserError(f"the unet head needs a patch_size that is a power of two, got {patch_size}")
        channels = [width * min(2**level, widest) for level in range(levels)]
        self.down = nn.ModuleList(
            nn.Conv2d(below, above, 3, padding=1)
            for below, above in zip([3, *channels], channels, strict=False)
        )
        self.bottleneck = nn.Conv2d(channels[-1] + core_dim, channels[-1], 1)
        self.up = nn.ModuleList(nn.Conv2d(channel, channel, 3, padding=1) for channel in channels)
        self.merge = nn.ModuleList(
            nn.Conv2d(2 * channel, below, 3, padding=1)
            for channel, below in zip(channels, [width, *channels], strict=False)
        )
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, features: Tensor, c: Tensor, x_in: Tensor, t: Tensor) -> Tensor:
        x = x_in.to(self.out.weight.dtype)
        skips = []
        for conv in self.down:
            skips.append(F.silu(conv(x)))
            x = F.max_pool2d(skips[-1], 2)
        x = F.silu(self.bottleneck(torch.cat([x, features.permute(0, 3, 1, 2).to(x.dtype)], dim=1)))
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(skips), strict=True):
            x = up(F.interpolate(x, scale_factor=2, mode="nearest"))
            x = F.silu(merge(torch.cat([x, skip], dim=1)))
        out = self.out(x)
        if self.writes == "minus_velocity":
            return flow.x_0_from_velocity(x_in, -out.to(x_in.dtype), t)
        return out
