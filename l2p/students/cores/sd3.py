"""The core of Stable Diffusion 3 and 3.5: joint attention, positions added once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from l2p.students.cores.base import Core, grid_positions

if TYPE_CHECKING:
    from l2p.teachers.protocol import Conditioning


class SD3Core(Core):
    """An ``SD3Transformer2DModel`` for pixel patches."""

    transformer_class = "SD3Transformer2DModel"
    first = "pos_embed.proj"
    channels_first = False

    def forward_blocks(
        self, x: Tensor, grid: tuple[int, int], t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        model = self.transformer
        x = x + grid_positions(model.pos_embed, grid, x)
        c = model.time_text_embed(1000 * t, conditioning.pooled)
        text = model.context_embedder(conditioning.embeds)
        for block in model.transformer_blocks:
            text, x = self.checkpointed(block, hidden_states=x, encoder_hidden_states=text, temb=c)
        return x, c
