"""Cores of FLUX.1, Chroma and FLUX.2: joint attention of text and image, then single streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2p.students.cores.base import Core, Final
from l2p.teachers.flux import grid_ids
from l2p.teachers.flux2 import position_ids

if TYPE_CHECKING:
    from l2p.teachers.protocol import Conditioning


class FluxCore(Core):
    """A ``FluxTransformer2DModel`` for pixel patches."""

    transformer_class = "FluxTransformer2DModel"

    def forward_blocks(
        self, x: Tensor, grid: tuple[int, int], t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        model, guidance = self.transformer, self.guidance(t)
        told = (1000 * t,) if guidance is None else (1000 * t, guidance)
        c = model.time_text_embed(*told, conditioning.pooled)
        text = model.context_embedder(conditioning.embeds)
        rope = model.pos_embed(_positions(text, grid))
        for block in self.layers:
            text, x = self.checkpointed(
                block, hidden_states=x, encoder_hidden_states=text, temb=c, image_rotary_emb=rope
            )
        return x, c


class ChromaCore(Core):
    """A ``ChromaTransformer2DModel`` for pixel patches; its modulations all come from one small network of the time."""

    transformer_class = "ChromaTransformer2DModel"

    def __init__(self, config: dict[str, Any], patch_size: int) -> None:
        super().__init__(config, patch_size)
        from diffusers.models.transformers.transformer_chroma import ChromaCombinedTimestepTextProjEmbeddings

        sizes = self.transformer.config
        with torch.device("cpu"):  # its table is not saved, so it cannot wait for weights on the meta device
            self.transformer.time_text_embed = ChromaCombinedTimestepTextProjEmbeddings(
                num_channels=sizes.approximator_num_channels // 4,
                out_dim=3 * sizes.num_single_layers + 12 * sizes.num_layers + 2,
            )

    @property
    def time_dim(self) -> int:
        return 2 * self.dim

    def new_final(self, out_dim: int) -> nn.Module:
        return Final(_Pruned(self.dim), self.dim, out_dim)

    def forward_blocks(
        self, x: Tensor, grid: tuple[int, int], t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        model = self.transformer
        modulations = model.distilled_guidance_layer(model.time_text_embed((1000 * t).to(x.dtype)))
        text = model.context_embedder(conditioning.embeds)
        rope = model.pos_embed(_positions(text, grid))
        mask = F.pad(conditioning.mask, (0, x.shape[1]), value=True)
        singles, doubles = len(model.single_transformer_blocks), len(model.transformer_blocks)
        for i, block in enumerate(model.transformer_blocks):
            image, words = 3 * singles + 6 * i, 3 * singles + 6 * (doubles + i)
            temb = torch.cat([modulations[:, image : image + 6], modulations[:, words : words + 6]], dim=1)
            text, x = self.checkpointed(
                block,
                hidden_states=x,
                encoder_hidden_states=text,
                temb=temb,
                image_rotary_emb=rope,
                attention_mask=mask,
            )
        words = text.shape[1]
        x = torch.cat([text, x], dim=1)
        for i, block in enumerate(model.single_transformer_blocks):
            temb = modulations[:, 3 * i : 3 * i + 3]
            x = self.checkpointed(
                block, hidden_states=x, temb=temb, image_rotary_emb=rope, attention_mask=mask
            )
        return x[:, words:], modulations[:, -2:].flatten(1)


class _Pruned(nn.Module):
    """LayerNorm under a shift and a scale that arrive ready-made: c is [B, 2 dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = c.to(x.dtype)[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class Flux2Core(Core):
    """A ``Flux2Transformer2DModel`` for pixel patches; all blocks share their modulations, which stay with the core."""

    transformer_class = "Flux2Transformer2DModel"
    final_bias = False

    def forward_blocks(
        self, x: Tensor, grid: tuple[int, int], t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        model = self.transformer
        c = model.time_guidance_embed((1000 * t).to(x.dtype), self.guidance(t))
        of_image, of_text = model.double_stream_modulation_img(c), model.double_stream_modulation_txt(c)
        of_both = model.single_stream_modulation(c)
        text = model.context_embedder(conditioning.embeds)
        words = text.shape[1]
        rope = model.pos_embed(torch.cat(position_ids(words, grid, x.device)))
        for block in model.transformer_blocks:
            text, x = self.checkpointed(
                block,
                hidden_states=x,
                encoder_hidden_states=text,
                temb_mod_img=of_image,
                temb_mod_txt=of_text,
                image_rotary_emb=rope,
            )
        x = torch.cat([text, x], dim=1)
        for block in model.single_transformer_blocks:
            x = self.checkpointed(
                block, hidden_states=x, encoder_hidden_states=None, temb_mod=of_both, image_rotary_emb=rope
            )
        return x[:, words:], c


def _positions(text: Tensor, grid: tuple[int, int]) -> Tensor:
    """FLUX.1's positions [L + h w, 3]: text at the origin, the image on its grid."""
    return torch.cat([text.new_zeros(text.shape[1], 3), grid_ids(*grid, text.device).to(text)])
