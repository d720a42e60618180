"""The core of Z-Image, walked on a whole batch at once (:mod:`l2p.teachers.z_image_forward`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from l2p.errors import UserError
from l2p.students.cores.base import Core
from l2p.teachers.z_image_forward import embed, forward_embedded

if TYPE_CHECKING:
    from l2p.teachers.protocol import Conditioning

FIXED = ("all_patch_size", "all_f_patch_size", "in_channels")  # decided by the student, not by the teacher


class ZImageCore(Core):
    """A ``ZImageTransformer2DModel`` for pixel patches; built for them, as its embedders carry their patch in their name.

    Args:
        interval: with a second time embedding, of a step's length; it starts at zero, so that nothing changes at first.
    """

    transformer_class = "ZImageTransformer2DModel"
    takes_interval = True

    def __init__(self, config: dict[str, Any], patch_size: int, interval: bool = False) -> None:
        nn.Module.__init__(self)
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

    @classmethod
    def config_of(cls, transformer_config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        config = super().config_of(transformer_config, options)
        return {key: v for key, v in config.items() if key not in ("class", "siglip_feat_dim", *FIXED)}

    @classmethod
    def check(cls, transformer_config: Mapping[str, Any]) -> None:
        if transformer_config.get("siglip_feat_dim"):
            raise UserError(
                "this transformer reads images besides captions (siglip_feat_dim): no core for that yet"
            )

    @property
    def embedder(self) -> nn.Linear:
        return _only(self.transformer.all_x_embedder)

    @property
    def embedder_name(self) -> str:
        return f"all_x_embedder.{next(iter(self.transformer.all_x_embedder))}"

    @property
    def layers(self) -> nn.ModuleList:
        return self.transformer.layers

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.transformer.noise_refiner, *self.transformer.context_refiner, *self.layers]

    @property
    def dim(self) -> int:
        return self.transformer.dim

    @property
    def time_dim(self) -> int:
        return self.transformer.t_embedder.mlp[-1].out_features

    def new_final(self, out_dim: int) -> nn.Module:
        from diffusers.models.transformers.transformer_z_image import FinalLayer

        return FinalLayer(self.dim, out_dim)

    @classmethod
    def copy_norm(cls, final: nn.Module, transformer: nn.Module) -> None:
        final.adaLN_modulation.load_state_dict(
            _only(transformer.all_final_layer).adaLN_modulation.state_dict()
        )

    @classmethod
    def teacher_state(cls, transformer: nn.Module) -> dict[str, Tensor]:
        return {
            name: tensor.clone()
            for name, tensor in transformer.state_dict().items()
            if not name.startswith(("all_x_embedder.", "all_final_layer."))
        }

    @classmethod
    def input_proj_weights(cls, transformer: nn.Module) -> tuple[Tensor, Tensor]:
        layer = _only(transformer.all_x_embedder)
        return layer.weight, layer.bias

    @classmethod
    def output_proj_weights(cls, transformer: nn.Module) -> tuple[Tensor, Tensor]:
        layer = _only(transformer.all_final_layer).linear  # writes minus the velocity as it is
        return layer.weight, layer.bias

    def embed(self, tokens: Tensor, t: Tensor) -> Tensor:
        return embed(self.transformer, tokens.to(self.embedder.weight))

    def run(
        self,
        x: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        span: Tensor | None = None,
        inject: Callable[[int, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Core.run`; diffusers counts the time of this family the other way.

        Args:
            inject: see :func:`l2p.teachers.z_image_forward.forward_embedded`.
        """
        weight = self.embedder.weight
        t_model = (1 - t).to(weight.device, torch.float32)
        extra = None if span is None else self.span_embedder(span * self.transformer.t_scale)
        conditioning = conditioning.to(weight.device, weight.dtype)
        return forward_embedded(self.transformer, x, t_model, conditioning, extra, inject=inject)

    def forward_blocks(
        self, x: Tensor, grid: tuple[int, int], t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("this family is walked whole, embedding included")


def _only(layers: nn.ModuleDict) -> nn.Module:
    return next(iter(layers.values()))
