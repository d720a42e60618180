"""Z-Image's blocks on a GPU, without gradients: diffusers' numbers in a quarter of the launches.

A small network on a fast GPU waits for its host, and every pass over the tokens costs as much as a product. So the
modulations of all blocks are one product, a norm takes its scale as its weight, and queries, keys and values are one
product, as are the two halves of SwiGLU.

Legend: B batch, N tokens, h heads, d values of a head, D = h d, K blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock


def suits(block: nn.Module, x: Tensor) -> bool:
    """Whether :class:`Fused` may stand for ``block(x, ...)`` here."""
    return (
        x.device.type == "cuda"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cuda")
        and not torch.compiler.is_compiling()
        and block._compiled_call_impl is None
        and all(_plain(layer, x) for layer in _layers(block))
    )


def _layers(block: ZImageTransformerBlock) -> list[nn.Module]:
    attention, feed = block.attention, block.feed_forward
    found = [attention.to_q, attention.to_k, attention.to_v, feed.w1, feed.w3]
    return found + ([block.adaLN_modulation[0]] if block.modulation else [])


def _plain(layer: nn.Module, x: Tensor) -> bool:
    """No adapter, no rounded or sharded weight, and of x's dtype and device: what may be joined with others."""
    weight = getattr(layer, "weight", None)
    return (
        type(layer) is nn.Linear
        and isinstance(weight.data, Tensor)
        and not hasattr(weight.data, "__tensor_flatten__")
        and weight.dtype == x.dtype
        and weight.device == x.device
    )


class Fused:
    """The blocks of one pass with their modulations known.

    Args:
        blocks: all of the pass, modulated or not.
        c: time embedding [B, time_dim].
    """

    def __init__(self, blocks: Sequence[ZImageTransformerBlock], c: Tensor) -> None:
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        modulated = [block for block in blocks if block.modulation]
        if not modulated:
            return
        layers = [block.adaLN_modulation[0] for block in modulated]
        drawn = F.linear(c, joined(layers, "weight"), joined(layers, "bias"))
        scales, gates = drawn.float().view(len(c), len(layers), 2, 2, -1).unbind(3)  # [B, K, 2, D]
        before = joined([norm for b in modulated for norm in (b.attention_norm1, b.ffn_norm1)], "weight")
        after = joined([norm for b in modulated for norm in (b.attention_norm2, b.ffn_norm2)], "weight")
        scales = ((1 + scales) * before.view(scales.shape[1:])).to(c.dtype)
        gates = (gates.tanh() * after.view(gates.shape[1:])).to(c.dtype)
        for number, block in enumerate(modulated):
            self._known[id(block)] = scales[:, number], gates[:, number]

    def __call__(
        self,
        block: ZImageTransformerBlock,
        x: Tensor,
        mask: Tensor | None,
        rope: Tensor,
        wanted: int | None = None,
    ) -> Tensor:
        """``block(x, mask, rope, c)`` to rounding.

        Args:
            x: [B, N, D].
            mask: keys that are attended to, [B, N]; None: all.
            rope: complex rotations [B or 1, N, d / 2].
            wanted: only so many tokens of each picture, the first, are computed: [B, wanted, D]; they attend to all.
        """
        wanted = x.shape[1] if wanted is None else wanted
        scales, gates = self._known.get(id(block), (None, None))
        y = self._normed(x, block.attention_norm1, scales, 0)
        y = self._attended(block.attention, y, mask, rope, wanted)
        x = self._added(x[:, :wanted], y, block.attention_norm2, gates, 0)
        feed = block.feed_forward
        y = self._normed(x, block.ffn_norm1, scales, 1)
        gate, up = F.linear(y, joined([feed.w1, feed.w3], "weight")).chunk(2, dim=-1)
        return self._added(x, feed.w2(F.silu(gate).mul_(up)), block.ffn_norm2, gates, 1)

    @staticmethod
    def _attended(attention: nn.Module, y: Tensor, mask: Tensor | None, rope: Tensor, wanted: int) -> Tensor:
        heads = attention.heads
        qkv = F.linear(y, joined([attention.to_q, attention.to_k, attention.to_v], "weight"))
        turning, v = qkv.unflatten(-1, (3, heads, -1)).split((2, 1), dim=2)  # [B, N, 2 or 1, h, d]
        if attention.norm_q is None:
            turning = turning.float()
        else:
            norms = [attention.norm_q, attention.norm_k]
            turning = F.rms_norm(turning, turning.shape[-1:], eps=attention.norm_q.eps)
            turning = turning * joined(norms, "weight").float().view(2, 1, -1)
        turning = torch.view_as_complex(turning.unflatten(-1, (-1, 2))) * rope[:, :, None, None]
        q, k = torch.view_as_real(turning).flatten(4).to(y.dtype).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q[:, :wanted], k, v[:, :, 0]))
        mask = None if mask is None else mask[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attention.to_out[0](out.transpose(1, 2).flatten(2))

    @staticmethod
    def _normed(x: Tensor, norm: nn.Module, scales: Tensor | None, which: int) -> Tensor:
        """RMSNorm with the norm's weight and the modulation's scale."""
        if scales is None:
            return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
        if len(x) == 1:
            return F.rms_norm(x, x.shape[-1:], scales[0, which], norm.eps)
        return F.rms_norm(x, x.shape[-1:], eps=norm.eps).mul_(scales[:, None, which])

    @staticmethod
    def _added(x: Tensor, y: Tensor, norm: nn.Module, gates: Tensor | None, which: int) -> Tensor:
        """x + gate * RMSNorm(y)."""
        if gates is None:
            return x + F.rms_norm(y, y.shape[-1:], norm.weight, norm.eps)
        return torch.addcmul(x, F.rms_norm(y, y.shape[-1:], eps=norm.eps), gates[:, None, which])


@torch.no_grad()
def joined(layers: Sequence[nn.Module], name: str) -> Tensor:
    """The layers' weights (or biases) one below the other, as one tensor, of which they become views: nothing is kept twice.

    A layer that was given another weight since is joined anew.
    """
    parts = [getattr(layer, name) for layer in layers]
    whole = layers[0].__dict__.get(f"joined_{name}")
    if whole is not None and len(whole) == sum(map(len, parts)):
        storage, at = whole.untyped_storage()._cdata, whole.storage_offset()
        for part in parts:
            if part.untyped_storage()._cdata != storage or part.storage_offset() != at:
                break
            at += part.numel()
        else:
            return whole
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    layers[0].__dict__[f"joined_{name}"] = whole
    return whole
