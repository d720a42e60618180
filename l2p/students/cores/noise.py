"""Cores that predict noise: PixArt-Sigma and DiT, read in flow time (:mod:`l2p.teachers.schedules`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2p.errors import UserError
from l2p.students.cores.base import Core, Final, additive_mask, grid_positions
from l2p.students.cores.sana import TableNorm
from l2p.teachers.dit import class_numbers
from l2p.teachers.schedules import NoiseSchedule

if TYPE_CHECKING:
    from l2p.teachers.protocol import Conditioning


class NoiseCore(Core):
    """A core whose last layer, the head's, writes minus the noise; a learnt variance beside it is dropped."""

    first = "pos_embed.proj"
    channels_first = False

    def __init__(self, config: dict[str, Any], patch_size: int) -> None:
        super().__init__(config, patch_size)
        from diffusers import DDIMScheduler

        self.transformer.pos_embed.pos_embed = None  # computed for any grid instead
        with torch.device("cpu"):
            self.schedule = NoiseSchedule(DDIMScheduler(**config["noise"]))

    @property
    def latest_noise(self) -> float:
        return self.schedule.latest

    @classmethod
    def output_proj_weights(cls, transformer: nn.Module) -> tuple[Tensor, Tensor]:
        layer, config = transformer.get_submodule(cls.last[-1]), transformer.config
        weight, bias = (
            part.unflatten(0, (-1, config.out_channels or config.in_channels))[:, : config.in_channels]
            for part in (layer.weight, layer.bias)
        )
        return -weight.flatten(0, 1), -bias.flatten()

    def embed(self, tokens: Tensor, t: Tensor) -> Tensor:
        """See :meth:`Core.embed`; the transformer meets the tokens at unit variance."""
        return super().embed(self.schedule.model_input(tokens, t.to(tokens.device))[0], t)

    def run(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, span: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Core.run`; the transformer is told its own timestep."""
        return super().run(x, self.schedule.timestep(t.to(x.device)), conditioning, span)


class PixArtCore(NoiseCore):
    """A ``PixArtTransformer2DModel`` for pixel patches."""

    transformer_class = "PixArtTransformer2DModel"
    last = ("norm_out", "scale_shift_table", "proj_out")

    @classmethod
    def check(cls, transformer_config: Mapping[str, Any]) -> None:
        extra = transformer_config.get("use_additional_conditions")
        if extra or (extra is None and transformer_config.get("sample_size") == 128):
            raise UserError("this PixArt reads resolution and aspect ratio (alpha): expected PixArt-Sigma")

    def new_final(self, out_dim: int) -> nn.Module:
        return Final(TableNorm(self.dim), self.dim, out_dim)

    @classmethod
    def copy_norm(cls, final: nn.Module, transformer: nn.Module) -> None:
        final.norm.scale_shift_table.copy_(transformer.scale_shift_table)

    def forward_blocks(
        self, x: Tensor, grid: tuple[int, int], t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        model = self.transformer
        x = x + grid_positions(model.pos_embed, grid, x)
        unused = {"resolution": None, "aspect_ratio": None}
        timestep, c = model.adaln_single(t, unused, batch_size=len(x), hidden_dtype=x.dtype)
        text, mask = model.caption_projection(conditioning.embeds), additive_mask(conditioning, x)
        for block in model.transformer_blocks:
            x = self.checkpointed(
                block,
                hidden_states=x,
                encoder_hidden_states=text,
                encoder_attention_mask=mask,
                timestep=timestep,
            )
        return x, c


class _LinearNorm(nn.Module):
    """LayerNorm under a shift and a scale that a linear layer reads off the time embedding [B, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class DiTCore(NoiseCore):
    """A ``DiTTransformer2DModel`` for pixel patches; the class enters with the time, in every block."""

    transformer_class = "DiTTransformer2DModel"
    last = ("norm_out", "proj_out_1", "proj_out_2")

    def __init__(self, config: dict[str, Any], patch_size: int) -> None:
        super().__init__(config, patch_size)
        for (
            block
        ) in self.transformer.transformer_blocks:  # in training diffusers would forget classes at random
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    def new_final(self, out_dim: int) -> nn.Module:
        return Final(_LinearNorm(self.dim), self.dim, out_dim)

    @classmethod
    def copy_norm(cls, final: nn.Module, transformer: nn.Module) -> None:
        final.norm.modulation.load_state_dict(transformer.proj_out_1.state_dict())

    def forward_blocks(
        self, x: Tensor, grid: tuple[int, int], t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        model, classes = self.transformer, class_numbers(conditioning)
        x = x + grid_positions(model.pos_embed, grid, x)
        for block in model.transformer_blocks:
            x = self.checkpointed(block, hidden_states=x, timestep=t, class_labels=classes)
        c = model.transformer_blocks[0].norm1.emb(t, classes, hidden_dtype=x.dtype)
        return x, c
