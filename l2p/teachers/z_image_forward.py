"""The Z-Image transformer on a whole batch at once, where diffusers walks lists of samples.

The modules, their weights and their forwards are diffusers' own; only the bookkeeping around them (padding,
positions, masks) is vectorised. The layout is diffusers':

- captions are padded to a multiple of 32 with ``cap_pad_token``, at positions (1 + i, 0, 0);
- image tokens sit at (caption length + 1, y, x), padded to a multiple of 32 by ``x_pad_token`` at (0, 0, 0);
- the main layers read [image, caption]; a key mask exists only when padded caption lengths differ.

Legend: B batch, h w token grid, D values of a token, C caption width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from l2p.errors import UserError
from l2p.teachers import z_image_fused
from l2p.teachers.z_image_block import block_forward, suits
from l2p.teachers.z_image_fused import Fused

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

    from l2p.teachers.protocol import Conditioning

MULTIPLE = 32  # diffusers' SEQ_MULTI_OF


def batched_forward(
    transformer: ZImageTransformer2DModel,
    tokens: Tensor,
    t_model: Tensor,
    conditioning: Conditioning,
    time_extra: Tensor | None = None,
    hidden: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Everything of the transformer before its final layer: :func:`embed`, then :func:`forward_embedded`.

    Args:
        tokens: packed tokens [B, h, w, D], of the embedder's dtype.
        t_model: diffusers' time [B], that is ``1 - t``.
        conditioning: captions of any lengths.
        time_extra: added to the time embedding, of its shape.
        hidden: gets the image tokens [B, h, w, dim] after each main layer.

    Returns:
        Features [B, h, w, dim] of the image tokens, and the time embedding c [B, min(dim, 256)].

    Raises:
        UserError: a grid or caption beyond the positions the transformer has.
    """
    x = embed(transformer, tokens)
    return forward_embedded(transformer, x, t_model, conditioning, time_extra, hidden)


def embed(transformer: ZImageTransformer2DModel, tokens: Tensor) -> Tensor:
    """Packed tokens [B, h, w, D] through the first layer: [B, h, w, dim]. Each token alone, so rows of them will do."""
    for embedder in transformer.all_x_embedder.values():
        if embedder.in_features == tokens.shape[-1]:
            return embedder(tokens)
    sizes = [embedder.in_features for embedder in transformer.all_x_embedder.values()]
    raise ValueError(f"tokens of {tokens.shape[-1]} values for a transformer that embeds {sizes}")


def forward_embedded(
    transformer: ZImageTransformer2DModel,
    x: Tensor,
    t_model: Tensor,
    conditioning: Conditioning,
    time_extra: Tensor | None = None,
    hidden: list[Tensor] | None = None,
    inject: Callable[[int, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`batched_forward` of tokens x [B, h, w, dim] that passed the first layer.

    Args:
        inject: ``(number of a main layer, image tokens [B, h w, dim] before it)`` to what goes into it in their place.
    """
    batch, height, width, _ = x.shape
    count = height * width
    lengths = conditioning.lengths.tolist()
    padded = [padded_length(length) for length in lengths]
    longest, mixed = max(padded), min(padded) != max(padded)
    image_rope, caption_rope = _rope(transformer, height, width, padded if mixed else padded[:1], x.device)

    c = transformer.t_embedder(t_model * transformer.t_scale)
    c = (c if time_extra is None else c + time_extra).type_as(transformer.x_pad_token)
    x = x.flatten(1, 2).to(transformer.x_pad_token.dtype)
    blocks = [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]
    fused = Fused(blocks, c) if all(z_image_fused.suits(block, x) for block in blocks) else None
    if count % MULTIPLE:
        pads = transformer.x_pad_token.expand(batch, padded_length(count) - count, -1)
        x = torch.cat([x, pads], dim=1)
    for layer in transformer.noise_refiner:
        x = _run(transformer, fused, layer, x, None, image_rope, c)

    index = torch.arange(longest, device=x.device)
    embeds = conditioning.embeds[:, :longest]
    embeds = F.pad(embeds, (0, 0, 0, longest - embeds.shape[1]))
    caption = transformer.cap_embedder(embeds)
    told = conditioning.device_lengths
    own = _below(lengths, index) if told is None else index < told[:, None]
    caption = torch.where(own[..., None], caption, transformer.cap_pad_token)
    keys = _below(padded, index) if mixed else None
    for layer in transformer.context_refiner:
        caption = _run(transformer, fused, layer, caption, keys, caption_rope)

    rope = torch.cat([image_rope, caption_rope.expand(len(image_rope), -1, -1)], dim=1)
    if mixed:
        keys = F.pad(keys, (x.shape[1], 0), value=True)
    x = torch.cat([x, caption], dim=1)
    for number, layer in enumerate(transformer.layers):
        if inject is not None:
            x = torch.cat([inject(number, x[:, :count]), x[:, count:]], dim=1)
        is_last = number == len(transformer.layers) - 1  # after which nobody asks for the caption
        x = _run(transformer, fused, layer, x, keys, rope, c, wanted=count if is_last else None)
        if hidden is not None:
            hidden.append(x[:, :count].unflatten(1, (height, width)))
    return x[:, :count].unflatten(1, (height, width)), c


def _run(
    transformer: nn.Module,
    fused: Fused | None,
    layer: nn.Module,
    *arguments: Tensor | None,
    wanted: int | None = None,
) -> Tensor:
    """The layer's output; of the first ``wanted`` tokens alone where that saves work."""
    if fused is not None:
        return fused(layer, *arguments[:3], wanted=wanted)
    if transformer.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, *arguments, use_reentrant=False)
    x, mask, *rest = arguments
    if suits(layer, x, mask):
        return block_forward(layer, x, *rest, wanted=wanted)
    return layer(*arguments)


def _below(limits: list[int], index: Tensor) -> Tensor:
    """Where ``index`` [L] is below each limit: [B, L]. Row by row, as a copy to the device would end a CUDA graph's capture."""
    return torch.stack([index < limit for limit in limits])


def padded_length(count: int) -> int:
    """Tokens of a caption of so many, or of an image, as the transformer sees it."""
    return count + -count % MULTIPLE


def _rope(
    transformer: nn.Module, height: int, width: int, captions: list[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Complex rotations [1 or B, n, m] of the image and [1, L, m] of the longest caption; m = head_dim / 2."""
    config = transformer.config
    lens = config.axes_lens
    if height > lens[1] or width > lens[2]:
        raise UserError(
            f"{height} x {width} tokens exceed the {lens[1]} x {lens[2]} of this model: draw smaller"
        )
    if max(captions) + 1 >= lens[0]:
        raise UserError(
            f"a caption of {max(captions)} tokens exceeds the {lens[0] - 2} of this model: shorten the prompt"
        )
    family = (config.rope_theta, tuple(config.axes_dims), tuple(lens))
    tables = {length: _rope_tables(*family, height, width, length, device) for length in set(captions)}
    image = torch.stack([tables[length][0] for length in captions])
    return image, tables[max(captions)][1][None]


@lru_cache(maxsize=64)
def _rope_tables(
    theta: float,
    dims: tuple[int, ...],
    lens: tuple[int, ...],
    height: int,
    width: int,
    caption: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    from diffusers.models.transformers.transformer_z_image import RopeEmbedder

    # A table first made under inference mode could not be trained with later.
    with torch.inference_mode(False), torch.device("cpu"):
        image = torch.zeros(padded_length(height * width), 3, dtype=torch.int32)
        image[: height * width, 0] = caption + 1
        image[: height * width, 1:] = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        words = torch.zeros(caption, 3, dtype=torch.int32)
        words[:, 0] = torch.arange(1, caption + 1)
        embedder = RopeEmbedder(theta=theta, axes_dims=list(dims), axes_lens=list(lens))
        return embedder(image).to(device), embedder(words).to(device)
