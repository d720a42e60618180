"""A student in operations that every runtime has: no complex numbers, no operators of this project, any height, width
and caption, and no size that decides a branch.

`PortableStudent` is the student itself; while it runs, two functions below stand in for the transformer's bookkeeping
and for the patch attention. They give the same numbers to rounding and are slower: they are made to be traced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2p.errors import UserError
from l2p.students.student import PixelStudent, StudentSpec
from l2p.teachers.protocol import Conditioning
from l2p.teachers.text import TextEncoder
from l2p.teachers.z_image_forward import MULTIPLE


def refuse_other_readers(spec: StudentSpec, folder: object) -> None:
    """Raises: UserError for a student whose prompts are read in another way than Z-Image's, which exports alone know."""
    read_as = spec.teacher.get("pipeline", "ZImagePipeline")
    if read_as != "ZImagePipeline":
        raise UserError(
            f"{folder} reads prompts as a {read_as}, and what is exported reads them as Z-Image does: draw with "
            "`l2p generate` or l2p.load instead"
        )


def refuse_guided(spec: StudentSpec, folder: object) -> None:
    """Raises: UserError for a student that is guided when it draws: a graph takes one prompt."""
    if spec.guidance_scale > 1:
        raise UserError(
            f"{folder} draws with a guidance scale of {spec.guidance_scale:g}, which an exported graph has no second "
            "prompt for: draw with `l2p generate` or l2p.load instead"
        )


class PortableStudent(nn.Module):
    """``picture = forward(noise [1, 3, H, W], token_ids [1, L])``, fp32; H and W are multiples of the patch.

    It takes the student's own steps from the noise; both networks are widened to fp32 in place.
    """

    def __init__(self, student: PixelStudent, texts: TextEncoder) -> None:
        super().__init__()
        from diffusers.models.transformers.transformer_z_image import RopeEmbedder

        self.student = student.float().eval()
        self.text_encoder = texts.model.float()
        config = student.core.transformer.config
        tables = RopeEmbedder.precompute_freqs_cis(config.axes_dims, config.axes_lens, config.rope_theta)
        for axis, table in enumerate(tables):  # [places, pairs, 2]
            self.register_buffer(f"rope_{axis}", torch.view_as_real(table).clone(), persistent=False)

    def caption(self, token_ids: Tensor) -> Tensor:
        """Features [1, L, C] as `TextEncoder.features` has them; without padding there is nothing to mask."""
        states = self.text_encoder(input_ids=token_ids, output_hidden_states=True, use_cache=False)
        return states.hidden_states[-2]

    def forward(self, noise: Tensor, token_ids: Tensor) -> Tensor:
        caption = self.caption(token_ids)
        with self._standing_in():  # which reads the caption's length off its shape
            return self.student.sample(noise, Conditioning(caption, torch.zeros(1, dtype=torch.int64)))

    @contextmanager
    def _standing_in(self) -> Iterator[None]:
        blocks = [m for m in self.student.core.transformer.modules() if hasattr(m, "processor")]
        before = [block.processor for block in blocks]
        for block in blocks:
            block.processor = _Attention()
        try:
            with (
                patch("l2p.students.cores.z_image.forward_embedded", self._transformer),
                patch("l2p_kernels.patch_attention", patch_attention),
            ):
                yield
        finally:
            for block, processor in zip(blocks, before, strict=True):
                block.processor = processor

    def _transformer(
        self,
        transformer: nn.Module,
        x: Tensor,
        t_model: Tensor,
        conditioning: Conditioning,
        time_extra: Tensor | None = None,
        inject: None = None,  # a decoder's latents, which no prompt brings
    ) -> tuple[Tensor, Tensor]:
        """`l2p.teachers.z_image_forward.forward_embedded` for one picture, its sizes never looked at as numbers."""
        height, width = x.shape[1:3]
        count, length = height * width, conditioning.embeds.shape[1]
        c = transformer.t_embedder(t_model * transformer.t_scale)
        c = (c if time_extra is None else c + time_extra).type_as(x)
        x, is_token = _padded(x.flatten(1, 2), count, transformer.x_pad_token)
        words, _ = _padded(transformer.cap_embedder(conditioning.embeds), length, transformer.cap_pad_token)
        nowhere = torch.zeros(x.shape[1], dtype=torch.int64, device=x.device)
        token = torch.arange(x.shape[1], device=x.device).clamp(max=count - 1)
        rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        row_of = (rows[:, None] + torch.zeros_like(columns)).flatten()  # index // width has no ONNX form
        column_of = (torch.zeros_like(rows)[:, None] + columns).flatten()
        x_rope = self._rope(
            torch.where(is_token, words.shape[1] + 1, nowhere),
            torch.where(is_token, row_of[token], nowhere),
            torch.where(is_token, column_of[token], nowhere),
        )
        place = torch.arange(words.shape[1], device=x.device) + 1
        word_rope = self._rope(place, torch.zeros_like(place), torch.zeros_like(place))
        for layer in transformer.noise_refiner:
            x = layer(x, None, x_rope, c)
        for layer in transformer.context_refiner:
            words = layer(words, None, word_rope)
        x, rope = torch.cat([x, words], dim=1), torch.cat([x_rope, word_rope], dim=1)
        for layer in transformer.layers:
            x = layer(x, None, rope, c)
        return x[:, :count].reshape(1, height, width, x.shape[-1]), c

    def _rope(self, *places: Tensor) -> Tensor:
        """Cosines and sines [1, n, m, 2] of n tokens at these places along the axes."""
        tables = (getattr(self, f"rope_{axis}") for axis in range(len(places)))
        return torch.cat([table[place] for table, place in zip(tables, places, strict=True)], dim=1)[None]


def _padded(x: Tensor, count: int, pad: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, count, D] continued with `pad` to a multiple of MULTIPLE, and which of the tokens are x's own."""
    total = (count + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    index = torch.arange(total, device=x.device)
    own = index < count
    # Gathered, as a padding of no tokens would be a case of its own.
    return torch.where(own[:, None], x.index_select(1, index.clamp(max=count - 1)), pad), own


class _Attention:
    """diffusers' attention of this transformer, its complex rotation written in real numbers; nothing is masked."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        q, k, v = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1))
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            q, k = attn.norm_q(q), attn.norm_k(k)
        cos, sin = freqs_cis[:, :, None].unbind(-1)
        q, k = (_rotated(x, cos, sin).transpose(1, 2) for x in (q, k))
        out = F.scaled_dot_product_attention(q, k, v.transpose(1, 2))
        return attn.to_out[0](out.transpose(1, 2).flatten(2, 3))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def patch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tile: int,
    halo: int,
    q_norm: Tensor,
    k_norm: Tensor,
    rope: tuple[Tensor, Tensor],
) -> Tensor:
    """`l2p_kernels.patch_attention` without global tokens: each tile's keys gathered by index, then one attention."""
    from l2p_kernels.patch_attention import prologue

    batch, height, width, heads, head_dim = q.shape
    table = prologue.rope_table(*rope, torch.float32)
    q, k = prologue.forward(q, q_norm, table), prologue.forward(k, k_norm, table)
    rows, row_seen = _windows(height, tile, halo, q.device)
    columns, column_seen = _windows(width, tile, halo, q.device)
    own_rows, _ = _windows(height, tile, 0, q.device)
    own_columns, _ = _windows(width, tile, 0, q.device)
    n, m = own_rows.shape[0], own_columns.shape[0]  # len() would be a number of the trace
    windows = n * m
    queries = _gathered(q, own_rows, own_columns).reshape(batch * windows, tile**2, heads, head_dim)
    keys, values = (_gathered(x, rows, columns).flatten(0, 1).transpose(1, 2) for x in (k, v))
    seen = (
        (row_seen[:, None, :, None] & column_seen[None, :, None, :])
        .reshape(windows, 1, 1, -1)
        .repeat(batch, 1, tile**2, 1)  # onnxruntime takes no mask that all queries share
    )
    out = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, attn_mask=seen)
    out = out.transpose(1, 2).reshape(batch, n, m, tile, tile, heads, head_dim)
    grid = out.transpose(2, 3).reshape(batch, n * tile, m * tile, heads, head_dim)
    # Gathered, as a slice that takes all would be a case of its own: a grid of whole tiles.
    inside = (torch.arange(size, device=q.device) for size in (height, width))
    return grid.index_select(1, next(inside)).index_select(2, next(inside))


def _windows(size: int, tile: int, halo: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places [n, tile + 2 halo] along an axis that the tiles see, held inside it, and which of them are inside."""
    count = torch.sym_max((size + tile - 1) // tile, 2)  # a size that may be 1 would be a case of its own
    reach = torch.arange(tile + 2 * halo, device=device) - halo
    places = torch.arange(count, device=device)[:, None] * tile + reach
    return places.clamp(0, size - 1), (places >= 0) & (places < size)


def _gathered(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[B, H, W, h, d] -> [B, windows, places of a window, h, d]."""
    n, m = rows.shape[0], columns.shape[0]
    x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
    x = x.reshape(x.shape[0], n, rows.shape[1], m, columns.shape[1], *x.shape[3:]).transpose(2, 3)
    return x.reshape(x.shape[0], n * m, rows.shape[1] * columns.shape[1], *x.shape[5:])
