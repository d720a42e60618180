"""The core of Sana: linear attention over the grid, cross-attention to the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from l2p.students.cores.base import Core, Final, additive_mask, grid_positions

if TYPE_CHECKING:
    from l2p.teachers.protocol import Conditioning


class TableNorm(nn.Module):
    """LayerNorm under a shift and a scale: a learnt table [2, dim] plus the time embedding [B, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table[None] + c[:, None]).chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


class SanaCore(Core):
    """A ``SanaTransformer2DModel`` for pixel patches."""

    transformer_class = "SanaTransformer2DModel"
    first = "patch_embed.proj"
    channels_first = False
    last = ("norm_out", "scale_shift_table", "proj_out")

    def __init__(self, config: dict[str, Any], patch_size: int) -> None:
        super().__init__(config, patch_size)
        self.has_positions = self.transformer.patch_embed.pos_embed is not None
        self.transformer.patch_embed.pos_embed = None  # computed for any grid instead

    def new_final(self, out_dim: int) -> nn.Module:
        return Final(TableNorm(self.dim), self.dim, out_dim)

    @classmethod
    def copy_norm(cls, final: nn.Module, transformer: nn.Module) -> None:
        final.norm.scale_shift_table.copy_(transformer.scale_shift_table)

    def forward_blocks(
        self, x: Tensor, grid: tuple[int, int], t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        model = self.transformer
        if self.has_positions:
            x = x + grid_positions(model.patch_embed, grid, x)
        thousandths = (1000 * t + 1e-3).floor() if self.whole_timesteps else 1000 * t
        timestep, c = model.time_embed(
            thousandths * model.config.timestep_scale, batch_size=len(x), hidden_dtype=x.dtype
        )
        text = model.caption_norm(model.caption_projection(conditioning.embeds))
        mask = additive_mask(conditioning, x)
        for block in model.transformer_blocks:
            x = self.checkpointed(
                block,
                hidden_states=x,
                encoder_hidden_states=text,
                encoder_attention_mask=mask,
                timestep=timestep,
                height=grid[0],
                width=grid[1],
            )
        return x, c
