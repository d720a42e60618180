"""The core of Qwen-Image: joint attention of text and image, with pads of the text masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from l2p.errors import UserError
from l2p.students.cores.base import Core

if TYPE_CHECKING:
    from l2p.teachers.protocol import Conditioning


class QwenImageCore(Core):
    """A ``QwenImageTransformer2DModel`` for pixel patches."""

    transformer_class = "QwenImageTransformer2DModel"
    first = "img_in"

    @classmethod
    def check(cls, transformer_config: Mapping[str, Any]) -> None:
        for key in ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
            if transformer_config.get(key):
                raise UserError(
                    f"this Qwen-Image reads pictures besides captions ({key}): no core for that yet"
                )

    def __init__(self, config: dict[str, Any], patch_size: int) -> None:
        super().__init__(config, patch_size)
        from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

        axes = list(self.transformer.config.axes_dims_rope)
        with torch.device(
            "cpu"
        ):  # its tables are not saved, so they cannot wait for weights on the meta device
            self.transformer.pos_embed = QwenEmbedRope(theta=10000, axes_dim=axes, scale_rope=True)

    def forward_blocks(
        self, x: Tensor, grid: tuple[int, int], t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        model, mask = self.transformer, conditioning.mask if conditioning.padded else None
        text = model.txt_in(model.txt_norm(conditioning.embeds))
        c = model.time_text_embed(t.to(x.dtype), x)
        shapes = [[(1, *grid)]] * len(x)
        rope = model.pos_embed(shapes, max_txt_seq_len=text.shape[1], device=x.device)
        for block in model.transformer_blocks:
            text, x = self.checkpointed(
                block,
                hidden_states=x,
                encoder_hidden_states=text,
                encoder_hidden_states_mask=mask,
                temb=c,
                image_rotary_emb=rope,
            )
        return x, c
