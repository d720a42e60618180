"""What all cores share: a diffusers transformer whose first layer reads pixel patches and whose last is the head's."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l2p.errors import UserError
from l2p.teachers.installed import diffusers_class

if TYPE_CHECKING:
    from l2p.teachers.protocol import Conditioning

OPTIONS = (
    "guidance_scale",
    "whole_timesteps",
    "noise",
)  # what a core knows besides its transformer's own config


class Final(nn.Module):
    """A family's last norm, modulated by the time embedding, and a linear layer of any width in place of its own."""

    def __init__(self, norm: nn.Module, dim: int, out_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.norm = norm
        self.linear = nn.Linear(dim, out_dim, bias=bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Features [B, N, dim] and time embedding [B, time_dim] to [B, N, out_dim]."""
        return self.linear(self.norm(x, c))


class Core(nn.Module, ABC):
    """A teacher's transformer for pixel patches of ``patch_size``, without its own first and last layers.

    A family names the layers, says how its tokens are ordered, and walks diffusers' own modules in ``forward``. The
    transformer keeps the teacher's config whole, so that its positions are the teacher's token grid.

    Args:
        config: as from :meth:`config_of`.
        patch_size: p, side of a pixel patch; tokens have ``3 p^2`` values.
    """

    transformer_class: ClassVar[str]
    first: ClassVar[str] = "x_embedder"  # the layer that reads tokens
    last: ClassVar[tuple[str, ...]] = (
        "norm_out",
        "proj_out",
    )  # what follows the features; the last one writes tokens
    channels_first: ClassVar[bool] = True  # order of the values that ``last`` writes: (channel, row, column)
    latest_noise: float | None = (
        None  # the latest time of a core that predicts noise; None where it is a velocity
    )
    takes_interval: ClassVar[bool] = False  # whether it can be told where a step ends
    packing: ClassVar[int] = 2  # side in latent cells of a token that is packed outside the transformer

    def __init__(self, config: dict[str, Any], patch_size: int) -> None:
        super().__init__()
        self.span_embedder: nn.Module | None = None  # of a step's length, where the core takes an interval
        options = {key: value for key, value in config.items() if key in OPTIONS}
        self.guidance_scale = options.get("guidance_scale", 0.0)
        self.whole_timesteps = options.get("whole_timesteps", False)
        kept = {key: value for key, value in config.items() if key not in ("class", *OPTIONS)}
        self.transformer = diffusers_class(self.transformer_class)(**kept)
        first = self.transformer.get_submodule(self.first)
        fresh = nn.Linear(3 * patch_size**2, first.weight.shape[0], bias=first.bias is not None)
        self.transformer.set_submodule(self.first, fresh)
        for name in self.last:
            delattr(self.transformer, name)

    @classmethod
    def config_of(cls, transformer_config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """The plain values that rebuild this core: the transformer's config, its class, and ``options``.

        Raises:
            UserError: a variant that this core does not read.
        """
        known = set(inspect.signature(diffusers_class(cls.transformer_class).__init__).parameters) - {"self"}
        cls.check(transformer_config)
        plain = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in transformer_config.items()
            if key in known
        }
        return {"class": cls.transformer_class, **plain, **options}

    @classmethod
    def check(cls, transformer_config: Mapping[str, Any]) -> None:
        """Raises UserError for a variant that this core does not read."""

    @property
    def embedder(self) -> nn.Linear:
        return self.transformer.get_submodule(self.first)

    @property
    def embedder_name(self) -> str:
        """Name of :attr:`embedder` within the transformer."""
        return self.first

    @property
    def layers(self) -> list[nn.Module]:
        """The main blocks, from the picture's end to the head's."""
        blocks = list(self.transformer.transformer_blocks)
        return blocks + list(getattr(self.transformer, "single_transformer_blocks", ()))

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks that repeat, those that read the caption alone included."""
        return list(self.layers)

    @property
    def dim(self) -> int:
        return self.embedder.out_features

    @property
    def time_dim(self) -> int:
        return self.dim

    def new_final(self, out_dim: int) -> nn.Module:
        """The last norm and a linear layer of ``out_dim`` values, for :meth:`copy_final` to fill."""
        from diffusers.models.normalization import AdaLayerNormContinuous

        bias = self.final_bias
        norm = AdaLayerNormContinuous(self.dim, self.dim, elementwise_affine=False, eps=1e-6, bias=bias)
        return Final(norm, self.dim, out_dim, bias)

    final_bias: ClassVar[bool] = True

    @classmethod
    def copy_norm(cls, final: nn.Module, transformer: nn.Module) -> None:
        """Fill all of ``final`` but its linear layer."""
        final.norm.load_state_dict(transformer.get_submodule(cls.last[0]).state_dict())

    @classmethod
    def teacher_state(cls, transformer: nn.Module) -> dict[str, Tensor]:
        """The weights that a core takes over as they are."""
        replaced = (cls.first, *cls.last)
        return {
            name: tensor.clone()
            for name, tensor in transformer.state_dict().items()
            if not any(name == part or name.startswith(f"{part}.") for part in replaced)
        }

    @classmethod
    def input_proj_weights(cls, transformer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight [dim, d], over tokens in (row, column, channel) order, and bias of the teacher's first layer."""
        layer = transformer.get_submodule(cls.first)
        weight = layer.weight if layer.weight.ndim == 4 else _unfold(layer.weight.T, cls.packing)
        return weight.permute(0, 2, 3, 1).flatten(1), layer.bias

    @classmethod
    def output_proj_weights(cls, transformer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight [d, dim] and bias [d] of the teacher's last layer for ``-u``, in (row, column, channel) order."""
        layer = transformer.get_submodule(cls.last[-1])
        weight, bias = -layer.weight, None if layer.bias is None else -layer.bias
        if not cls.channels_first:
            return weight, bias
        p = cls.packing
        order = torch.arange(len(weight), device=weight.device).view(-1, p, p).permute(1, 2, 0).flatten()
        return weight[order], None if bias is None else bias[order]

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        self.transformer.gradient_checkpointing = enabled

    def checkpointed(self, block: nn.Module, **arguments: Any) -> Any:
        """A block's answer, recomputed in the backward pass where that is asked for."""
        if self.transformer.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, use_reentrant=False, **arguments)
        return block(**arguments)

    def forward(
        self, tokens: Tensor, t: Tensor, conditioning: Conditioning, span: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features [B, h, w, dim], time embedding [B, time_dim] of tokens [B, h, w, 3 p^2] at (latent) time t [B],
        for a step of length `span` [B] where the core takes one.

        t = 1 is noise.
        """
        return self.run(self.embed(tokens, t), t, conditioning, span)

    def embed(self, tokens: Tensor, t: Tensor) -> Tensor:
        """The first layer alone, [B, rows, w, 3 p^2] -> [B, rows, w, dim]: a large picture passes it row by row."""
        return self.embedder(tokens.to(self.embedder.weight))

    def run(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, span: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` of embedded tokens x [B, h, w, dim]."""
        weight, grid = self.embedder.weight, tuple(x.shape[1:3])
        t = t.to(weight.device, torch.float32)
        x, c = self.forward_blocks(x.flatten(1, 2), grid, t, conditioning.to(weight.device, weight.dtype))
        return x.unflatten(1, grid), c

    @abstractmethod
    def forward_blocks(
        self, x: Tensor, grid: tuple[int, int], t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Embedded image tokens x [B, h w, dim] to features of that shape and the time embedding [B, time_dim]."""

    def guidance(self, t: Tensor) -> Tensor | None:
        """The guidance input [B] that this core was made for, in thousands; None where it has none."""
        if not self.transformer.config.get("guidance_embeds"):
            return None
        return torch.full_like(t, 1000 * self.guidance_scale)


def _unfold(weight: Tensor, packing: int) -> Tensor:
    """[c p p, dim] to [dim, c, p, p]."""
    return weight.unflatten(0, (-1, packing, packing)).permute(3, 0, 1, 2)


def grid_positions(embed: nn.Module, grid: tuple[int, int], like: Tensor) -> Tensor:
    """The additive positions [1, h w, dim] of a diffusers ``PatchEmbed`` for a token grid.

    Raises:
        UserError: a grid larger than the embedding was made for.
    """
    height, width = grid
    if embed.pos_embed_max_size:
        if max(grid) > embed.pos_embed_max_size:
            limit = embed.pos_embed_max_size
            raise UserError(
                f"{height} x {width} tokens exceed the {limit} x {limit} of this model: draw smaller"
            )
        return embed.cropped_pos_embed(height * embed.patch_size, width * embed.patch_size).to(like)
    return _sincos(like.shape[-1], grid, embed.base_size, embed.interpolation_scale, like.device).to(like)


@lru_cache(maxsize=16)
def _sincos(dim: int, grid: tuple[int, int], base: int, scale: float, device: torch.device) -> Tensor:
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    with torch.inference_mode(False), torch.device("cpu"):
        made = get_2d_sincos_pos_embed(dim, grid, base_size=base, interpolation_scale=scale, output_type="pt")
        return made.float()[None].to(device)


def additive_mask(conditioning: Conditioning, like: Tensor) -> Tensor:
    """[B, 1, L]: 0 at a prompt's tokens, -10,000 at the pads, as diffusers' cross-attention takes it."""
    return ((~conditioning.mask).to(like.dtype) * -10000.0)[:, None]
