"""The core of a student: the teacher's own transformer, reading pixel patches where it read latents."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from l2p.teachers.z_image_forward import embed, forward_embedded

if TYPE_CHECKING:
    from l2p.teachers.protocol import Conditioning

FIXED = ("all_patch_size", "all_f_patch_size", "in_channels")  # decided by the student, not by the teacher


def core_config(transformer_config: dict[str, Any]) -> dict[str, Any]:
    """The part of a diffusers transformer's config that a core keeps.

    Raises:
        ValueError: for the image-conditioned (SigLIP) variant.
    """
    from diffusers import ZImageTransformer2DModel

    if transformer_config.get("siglip_feat_dim"):
        raise ValueError(
            "this transformer reads images besides captions (siglip_feat_dim): no core for that yet"
        )
    known = set(inspect.signature(ZImageTransformer2DModel.__init__).parameters) - {
        "self",
        "siglip_feat_dim",
        *FIXED,
    }
    return {
        key: list(v) if isinstance(v, tuple) else v for key, v in transformer_config.items() if key in known
    }


class ZImageCore(nn.Module):
    """A diffusers ``ZImageTransformer2DModel`` for pixel patches of ``patch_size``, without its final layer.

    Args:
        config: as from :func:`core_config`.
        patch_size: p, side of a pixel patch; tokens have ``3 p^2`` values.
        interval: with a second time embedding, of a step's length; it starts at zero, so that nothing changes at first.
    """

    def __init__(self, config: dict[str, Any], patch_size: int, interval: bool = False) -> None:
        super().__init__()
        from diffusers import ZImageTransformer2DModel

        self.transformer = ZImageTransformer2DModel(
            **config, in_channels=3, all_patch_size=(patch_size,), all_f_patch_size=(1,)
        )
        self.transformer.all_final_layer = nn.ModuleDict()  # the student's head takes its place
        self.span_embedder = self.new_span_embedder() if interval else None

    def new_span_embedder(self) -> nn.Module:
        """A freshly initialised embedding of a step's length."""
        from diffusers.models.transformers.transformer_z_image import TimestepEmbedder

        embedder = TimestepEmbedder(self.time_dim)
        nn.init.zeros_(embedder.mlp[-1].weight)
        nn.init.zeros_(embedder.mlp[-1].bias)
        return embedder

    @property
    def embedder(self) -> nn.Linear:
        return next(iter(self.transformer.all_x_embedder.values()))

    @property
    def layers(self) -> nn.ModuleList:
        return self.transformer.layers

    @property
    def dim(self) -> int:
        return self.transformer.dim

    @property
    def time_dim(self) -> int:
        return self.transformer.t_embedder.mlp[-1].out_features

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        self.transformer.gradient_checkpointing = enabled

    def forward(
        self, tokens: Tensor, t: Tensor, conditioning: Conditioning, span: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features [B, h, w, dim], time embedding [B, time_dim] of tokens [B, h, w, 3 p^2] at (latent) time t
        [B], for a step of length `span` [B] where the core takes one.

        t = 1 is noise; diffusers counts the other way.
        """
        return self.run(self.embed(tokens), t, conditioning, span)

    def embed(self, tokens: Tensor) -> Tensor:
        """The first layer alone, [B, rows, w, 3 p^2] -> [B, rows, w, dim]: a large picture passes it row by row."""
        return embed(self.transformer, tokens.to(self.embedder.weight))

    def run(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, span: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` of embedded tokens x [B, h, w, dim]."""
        weight = self.embedder.weight
        t_model = (1 - t).to(weight.device, torch.float32)
        extra = None if span is None else self.span_embedder(span * self.transformer.t_scale)
        conditioning = conditioning.to(weight.device, weight.dtype)
        return forward_embedded(self.transformer, x, t_model, conditioning, extra)
