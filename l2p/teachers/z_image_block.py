"""A Z-Image block on a CPU, without gradients: diffusers' numbers in half the time.

diffusers' own forward writes every intermediate of every token out to memory, norms and rotations as a chain of fp32
passes, and torch's attention on a CPU is slower than the two matrix products it consists of. Here some tokens at a time
go through everything that concerns a token alone, some pictures at a time through a block, so that what is under way
stays in the cache; and attention is written out: rows of scores, a softmax, a product.

Legend: B batch, N tokens, h heads, d values of a head, D = h d.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

TOKENS = 1024  # at a time through norms and layers: enough for full speed of the products, little enough for the cache
FROM = 512  # tokens of a batch; below, diffusers' own is as quick or quicker
QUERIES = 512  # at a time against all keys of one head


def suits(block: nn.Module, x: Tensor, mask: Tensor | None) -> bool:
    """Whether :func:`block_forward` may stand for ``block(x, mask, ...)`` here."""
    return (
        mask is None
        and x.shape[0] * x.shape[1] >= FROM
        and x.device.type == "cpu"
        and x.dtype != torch.float64
        and block.attention_norm1.weight.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # of an exported program, too
        and block._compiled_call_impl is None
    )


def block_forward(
    block: ZImageTransformerBlock, x: Tensor, rope: Tensor, c: Tensor | None = None, wanted: int | None = None
) -> Tensor:
    """``block(x, None, rope, c)`` to rounding.

    Args:
        x: [B, N, D].
        rope: complex rotations [B or 1, N, d / 2].
        c: time embedding [B, time_dim]; None for a block that is not modulated.
        wanted: only so many tokens of each picture, the first, are computed: [B, wanted, D]; they attend to all.
    """
    wanted = x.shape[1] if wanted is None else wanted
    parts = [
        _pictures(block, x[some], rope if len(rope) == 1 else rope[some], c if c is None else c[some], wanted)
        for some in _some(len(x), max(1, TOKENS // x.shape[1]))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _pictures(
    block: ZImageTransformerBlock, x: Tensor, rope: Tensor, c: Tensor | None, wanted: int
) -> Tensor:
    attention, feed = block.attention, block.feed_forward
    scale_a = gate_a = scale_m = gate_m = torch.ones((), device=x.device)
    if block.modulation:
        scale_a, gate_a, scale_m, gate_m = block.adaLN_modulation(c)[:, None].float().chunk(4, dim=-1)
        scale_a, scale_m, gate_a, gate_m = 1 + scale_a, 1 + scale_m, gate_a.tanh(), gate_m.tanh()

    batch, count, _ = x.shape
    heads = attention.heads
    q, k, v = (x.new_empty(batch, heads, count, x.shape[-1] // heads) for _ in range(3))
    for rows in _some(count, TOKENS):
        y = _norm(x[:, rows], block.attention_norm1, scale_a).to(x.dtype)
        queries, keys, values = (part.unflatten(-1, (heads, -1)) for part in _projected(attention, y))
        for out, part, norm, factor in (
            (q, queries, attention.norm_q, q.shape[-1] ** -0.5),
            (k, keys, attention.norm_k, 1.0),
        ):
            part = part.float() if norm is None else _norm(part, norm, 1.0)
            turned = torch.view_as_complex(part.unflatten(-1, (-1, 2))) * rope[:, rows, None]
            out[:, :, rows] = torch.view_as_real(turned).flatten(3).mul_(factor).transpose(1, 2)
        v[:, :, rows] = values.transpose(1, 2)
    attended = attend(q[:, :, :wanted], k, v).flatten(2)
    del q, k, v

    out = x.new_empty(batch, wanted, x.shape[-1])
    for rows in _some(wanted, TOKENS):
        y = attention.to_out[0](attended[:, rows])
        y = _norm(y, block.attention_norm2, gate_a).add_(x[:, rows]).to(x.dtype)
        z = _norm(y, block.ffn_norm1, scale_m).to(x.dtype)
        z = feed.w2(F.silu(feed.w1(z)).mul_(feed.w3(z)))
        out[:, rows] = _norm(z, block.ffn_norm2, gate_m).add_(y)
    return out


def _projected(attention: nn.Module, y: Tensor) -> Iterable[Tensor]:
    """Queries, keys and values of y, in one product where these are plain layers: a narrow one leaves a CPU waiting."""
    layers = attention.to_q, attention.to_k, attention.to_v
    if not all(type(layer) is nn.Linear and layer.bias is None for layer in layers):  # adapters
        return (layer(y) for layer in layers)
    weights = [layer.weight for layer in layers]
    if any(type(weight.data) is not Tensor for weight in weights):  # rounded
        return (layer(y) for layer in layers)
    return F.linear(y, torch.cat(weights)).split([len(weight) for weight in weights], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of q [B, h, n, d] (scaled already) to k, v [B, h, N, d]: [B, n, h, d]."""
    batch, heads, count, width = q.shape
    if count <= QUERIES:
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2)
    out = q.new_empty(batch, count, heads, width)
    for picture in range(batch):
        for head in range(heads):
            keys, values = k[picture, head].T, v[picture, head]
            for rows in _some(count, QUERIES):
                weights = (q[picture, head, rows] @ keys).softmax(-1)
                out[picture, rows, head] = weights @ values
    return out


def _some(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _norm(x: Tensor, norm: nn.Module, factor: Tensor | float) -> Tensor:
    """RMSNorm of the last axis times ``factor``, in fp32."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    size = size.square_().div_(x.shape[-1]).add_(norm.eps).rsqrt_()
    return x.to(torch.float32, copy=True).mul_(size).mul_(norm.weight.float() * factor)
