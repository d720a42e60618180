"""The patch head: core tokens opened into fine tokens, refined by local attention across patch borders.

Everything is local, so cost grows with the pixels and nothing here knows the size of the picture. A band of rows is
painted from the rows that it depends on and no others, so that memory is set by the band; the whole picture is one
band, by the same code.

Legend: h w core grid, H W fine grid, f side of a fine patch in pixels, C width of the head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from l2p.errors import UserError
from l2p.patches import patchify, pixels
from l2p.runtime import no_autocast
from l2p.students.heads.block import PatchBlock, norm
from l2p.students.heads.linear import clean, final_layer

PIXEL_CHANNELS = 12  # numbers a pixel gets before the last two convolutions
PIXEL_HIDDEN = 32  # and between them
# Of a CPU: what leaves its cache takes longer. A GPU takes all at once that its memory has room for.
LARGEST_BAND = 2**16  # fine tokens, or one row of tiles: higher bands have less halo each
STRIPE = 2**18  # pixels that pass the last convolutions at a time: they have 47 numbers each there
FULL_BATCH = 2**62
WORKSPACE = 64 * 2**20  # bytes that attention's own bands and the libraries' buffers take, whatever the size
EDGE = 2  # pixels around its own that the last convolutions read
ROPE_THETA = 100.0  # neighbours are at most a few tiles away: slow rotations would tell them nothing


class PatchHead(nn.Module):
    """Fine tokens from the core and from the noise, a few :class:`PatchBlock`, one linear layer to pixels.

    The linear layer writes each fine patch alone, so its borders would show; two convolutions over
    :data:`PIXEL_CHANNELS` numbers a pixel mend them, and draw edges, which a layer that sees patches must learn once for
    every place. They add to a draft: the latents that the teacher's own final layer reads off the core, seen through a
    linear map of a token and its eight neighbours. With layer and map from teacher and lift, and all else at zero, an
    untrained student draws. The fine tokens see the draft too: what they learn is what a linear decoder lacks.

    Args:
        core_dim: width of the core's features.
        latent_dim: d, values of the teacher's token.
        time_dim: width of the core's time embedding.
        patch_size: p, pixels a side of a core token.
        fine_patch: f, pixels a side of a fine token, a divisor of p; halving it costs four times the work.
        width: C, a multiple of ``head_dim``.
        num_blocks: each lets a pixel see ``halo`` fine tokens further.
        head_dim: a multiple of 4 (two axes of rotation), 16 to 256.
        tile: fine tokens a side of a tile of queries.
        halo: fine tokens around a tile that its queries see.
        new_final: see :func:`l2p.students.heads.linear.final_layer`.
        latest_noise: see :func:`l2p.students.heads.linear.clean`.

    Attributes:
        band_height: pixels, a multiple of ``fine_patch``; :meth:`forward` paints in bands of so many rows. None: whole.
            It changes memory and time, not the picture.
        gradient_checkpointing: keep the inputs of each block, or of each band where there are several, for the
            backward pass, and compute the rest anew.
    """

    seen_channels = 6  # of the pictures that the fine tokens embed: the input and what is told of the draft
    written_channels = 3  # of the last convolution, for :meth:`_apply_residual`
    reach = EDGE  # pixel rows of the draft around its own that a band needs

    def __init__(
        self,
        core_dim: int,
        time_dim: int,
        patch_size: int,
        latent_dim: int,
        fine_patch: int = 4,
        width: int = 96,
        num_blocks: int = 3,
        head_dim: int = 32,
        tile: int = 8,
        halo: int = 4,
        new_final: Callable[[int], nn.Module] | None = None,
        latest_noise: float | None = None,
    ) -> None:
        super().__init__()
        if fine_patch < 1 or patch_size % fine_patch:
            raise UserError(f"{fine_patch=} must divide {patch_size=}")
        if head_dim % 4 or not 16 <= head_dim <= 256 or width % head_dim:
            raise UserError(
                f"{width=} must be a multiple of {head_dim=}, itself a multiple of 4 from 16 to 256"
            )
        self.num_blocks, self.width, self.tile, self.halo = num_blocks, width, tile, halo
        self.fine_patch = fine_patch
        self.head_dim = head_dim
        self.fold = patch_size // fine_patch  # fine tokens a side of a core token
        self.gradient_checkpointing = False
        self.band_height: int | None = None
        self.latest_noise = latest_noise
        self.open = nn.Linear(core_dim, self.fold**2 * width)
        self.embed = nn.Linear(self.seen_channels * fine_patch**2, width)
        self.blocks = nn.ModuleList(
            PatchBlock(width, time_dim, head_dim, tile, halo, residual_scale=(2 * num_blocks) ** -0.5)
            for _ in range(num_blocks)
        )
        self.out = nn.Linear(width, PIXEL_CHANNELS * fine_patch**2)
        self.conv_in = nn.Conv2d(3 + PIXEL_CHANNELS, PIXEL_HIDDEN, 3)  # `rows` continues the picture's edge
        self.conv_out = nn.Conv2d(PIXEL_HIDDEN, self.written_channels, 3)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)
        self.patch_size = patch_size
        self._make_draft(core_dim, latent_dim, new_final)

    def _make_draft(
        self, core_dim: int, latent_dim: int, new_final: Callable[[int], nn.Module] | None
    ) -> None:
        p = self.patch_size
        self.final = final_layer(core_dim, latent_dim, new_final)
        self.readout = nn.Conv2d(latent_dim, 3 * p**2, 3, padding=1)
        self.register_buffer("basis", torch.zeros(3 * p**2, latent_dim, dtype=torch.float32))

    def forward(self, features: Tensor, c: Tensor, x_in: Tensor, t: Tensor) -> Tensor:
        context = self.context(features, c, self.pool(patchify(x_in, self.patch_size)), t)
        return self.forward_pixels(features, c, context, x_in, t)

    def forward_pixels(self, features: Tensor, c: Tensor, context: Tensor, x_in: Tensor, t: Tensor) -> Tensor:
        """:meth:`forward` with the :meth:`context` known."""

        def rows(start: int, stop: int) -> Tensor:
            return x_in[:, :, start:stop]

        height, step = x_in.shape[2], self.band_height
        if not step or step >= height:  # without a range, which would hold an exported program to its height
            return self.rows(features, c, context, rows, t, 0, height).contiguous()
        bands = [(start, min(start + step, height)) for start in range(0, height, step)]
        if self.gradient_checkpointing and torch.is_grad_enabled():
            painted = [
                checkpoint(self.rows, features, c, context, rows, t, *band, use_reentrant=False)
                for band in bands
            ]
        else:
            painted = [self.rows(features, c, context, rows, t, *band) for band in bands]
        return torch.cat(painted, dim=2).contiguous()

    def pool(self, tokens: Tensor) -> Tensor:
        """What the draft needs of the core's input [B, rows, w, 3 p^2], each token alone: the lift's latents z_t."""
        with no_autocast(tokens):  # the noise's identity: keep its digits
            return tokens @ self.basis.to(tokens.dtype)

    def context(self, features: Tensor, c: Tensor, pooled: Tensor, t: Tensor) -> Tensor:
        """What all bands share, from :meth:`pool` of the whole input: here z_t [B, h, w, d] itself."""
        return pooled

    def rows(
        self,
        features: Tensor,
        c: Tensor,
        context: Tensor,
        x_in: Callable[[int, int], Tensor],
        t: Tensor,
        start: int,
        stop: int,
    ) -> Tensor:
        """Rows [start, stop) of the picture that :meth:`forward` paints, [B, 3, stop - start, W].

        Args:
            context: :meth:`context` of the whole picture.
            x_in: gives any rows [B, 3, rows, W] of the core's input.
        """
        f, fold = self.fine_patch, self.fold
        height = features.shape[1] * self.patch_size
        is_whole = (start, stop) == (0, height)
        top, bottom = _read(start, stop, height, EDGE)
        ranges = self._ranges(top // f, -(-bottom // f), height // f)
        low, high = ranges[0]
        first, last = low // fold, -(-high // fold)
        x = _spread(self.open(norm(features[:, first:last])), fold)[
            :, low - first * fold : high - first * fold
        ]
        draft_top, draft_bottom = _read(start, stop, height, self.reach)
        if not is_whole:
            draft_top, draft_bottom = min(draft_top, low * f), max(draft_bottom, high * f)
        draft = self._draft(features, c, context, t, draft_top, draft_bottom).to(self.embed.weight.dtype)
        draft_features = self._draft_features(draft, context, draft_top, low * f, high * f)
        x = x + self._embed_inputs(x_in, draft_features, low * f, high * f)
        del draft_features
        angles = self._angles(height // f, x.shape[2], x.device)
        silu_c = F.silu(c)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled() and is_whole
        for number, block in enumerate(self.blocks):
            (low, high), attended, mixed = ranges[2 * number : 2 * number + 3]
            rope = (angles[0][low:high], angles[1])
            crops = _within(attended, low), _within(mixed, attended[0])
            if recompute:
                x = checkpoint(block, x, silu_c, rope, *crops, use_reentrant=False)
            else:
                x = block(x, silu_c, rope, *crops)
        write = partial(self._write, x, ranges[-1][0] * f, draft, draft_top, height)
        step = max(1, self._stripe // (x.shape[2] * f))
        if _as_one(stop - start, step):
            return write(start, stop)
        stripes = range(start, stop, step)
        return torch.cat([write(first, min(first + step, stop)) for first in stripes], dim=2)

    def _write(
        self, x: Tensor, low: int, draft: Tensor, draft_top: int, height: int, start: int, stop: int
    ) -> Tensor:
        """Rows [start, stop) from fine tokens x, whose first pixel row is ``low``, and a draft that begins at ``draft_top``."""
        f = self.fine_patch
        top, bottom = _read(start, stop, height, EDGE)
        near = draft
        if (start, stop) != (0, height):
            first = (top - low) // f
            x, low = x[:, first : -(-(bottom - low) // f)], low + first * f
            near = draft[:, :, top - draft_top : bottom - draft_top]
        tokens, before, after = self.out(norm(x)), top - (start - EDGE), stop + EDGE - bottom
        crop = slice(top - low, bottom - low)
        # Channels last, as the layers before write them and as convolutions on a CPU are two to three times faster.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            near = torch.cat(
                [near.permute(0, 2, 3, 1).to(tokens.dtype), pixels(F.silu(tokens), f)[:, crop]], dim=3
            )
            near = continued(continued(near, 2, EDGE, EDGE), 1, before, after)
        else:
            near = _surrounded(tokens, near, f, crop, before, after)
        del tokens
        written = self.conv_out(F.silu(self.conv_in(near.permute(0, 3, 1, 2))))
        del near
        return self._apply_residual(written, draft, draft_top, start, stop)

    def _draft_features(self, draft: Tensor, context: Tensor, draft_top: int, low: int, high: int) -> Tensor:
        """What the fine tokens of the pixel rows [low, high) are told of the draft, whose first row is ``draft_top``."""
        if draft.shape[2] == high - low:
            return draft
        return draft[:, :, low - draft_top : high - draft_top]

    def _apply_residual(
        self, written: Tensor, draft: Tensor, draft_top: int, start: int, stop: int
    ) -> Tensor:
        """The pixel rows [start, stop): what the last convolution wrote for them, added to the draft."""
        if draft.shape[2] != stop - start:
            draft = draft[:, :, start - draft_top : stop - draft_top]
        return draft.to(written.dtype) + written

    def _embed_inputs(
        self, x_in: Callable[[int, int], Tensor], draft_features: Tensor, low: int, high: int
    ) -> Tensor:
        """``embed`` of the pixel rows [low, high) of the input and of what is told of the draft, some rows of core tokens
        at a time; each passes its own part of the weight, which spares a copy of both."""
        f, p = self.fine_patch, self.patch_size
        of_input, of_draft = (
            weight.flatten(1)
            for weight in self.embed.weight.unflatten(1, (f * f, -1)).split(
                (3, self.seen_channels - 3), dim=-1
            )
        )

        def embedded(start: int, stop: int) -> Tensor:
            part = (
                draft_features
                if stop - start == high - low
                else draft_features[:, :, start - low : stop - low]
            )
            seen = patchify(x_in(start, stop).to(draft_features.dtype), f)
            return F.linear(seen, of_input, self.embed.bias) + F.linear(patchify(part, f), of_draft)

        step = p * max(1, self._stripe // (p * draft_features.shape[3]))
        if _as_one(high - low, step):
            return embedded(low, high)
        firsts = range(low // p * p, high, step)
        return torch.cat([embedded(max(low, at), min(at + step, high)) for at in firsts], dim=1)

    @property
    def _stripe(self) -> int:
        """Pixels that are embedded, and that pass the last convolutions, at a time."""
        return STRIPE if self.open.weight.device.type == "cpu" else FULL_BATCH

    @property
    def unit(self) -> int:
        """Pixel rows of the lowest band: a row of tiles."""
        return self.tile * self.fine_patch

    def fit_band(self, budget: int, batch: int, height: int, width: int, itemsize: int) -> int | None:
        """Pixel rows of the highest band of a picture that :meth:`band_bytes` lets into ``budget`` bytes; None if none fits."""
        band = None
        largest = LARGEST_BAND if self.open.weight.device.type == "cpu" else FULL_BATCH
        tallest = largest // (batch * width // self.fine_patch * self.tile)
        for units in range(1, 1 + max(1, min(tallest, -(-height // self.unit)))):
            if self.band_bytes(units * self.unit, batch, width, itemsize) > budget:
                break
            band = units * self.unit
        return band

    def band_bytes(self, band: int, batch: int, width: int, itemsize: int) -> int:
        """Bytes in flight while :meth:`rows` paints ``band`` rows of ``width`` pixels, without gradients.

        Counted from the tensors that live at one time in each of the three parts; measured peaks are below it.
        """
        f, c = self.fine_patch, self.width
        far = 10**6 * self.unit  # in the middle of a large picture
        ranges = self._ranges(far // f - 1, (far + band) // f + 1, 10**9)
        given, attended = (high - low for low, high in (ranges[0], ranges[1 if self.num_blocks else 0]))
        hidden = self.blocks[0].down.in_features if self.num_blocks else 0
        around = (
            max(self.patch_size, min(band, self._stripe // width + 1)) / f
        )  # fine rows whose input is looked at
        # Spread, sum, embedded, the draft and its tokens; the input, in fp32, in pixels, and narrow.
        opened = given * (4 * c + 2 * (self.seen_channels - 3) * f**2) + around * 30 * f**2
        mixing = given * c + attended * (2 * c + 4 * hidden)
        attending = given * 7 * c
        stripe = min(band, self._stripe // width + 1) + 2 * (EDGE + f)
        writing = (band + 2 * f) / f * (c + 6 * f**2)  # fine tokens, draft and picture
        writing += stripe / f * 2 * f**2 * (3 + 2 * PIXEL_CHANNELS + 2 * PIXEL_HIDDEN + self.written_channels)
        values = max(opened, mixing, attending, writing) * (width // f)
        return int(batch * itemsize * values) + WORKSPACE

    def _ranges(self, low: int, high: int, total: int) -> list[tuple[int, int]]:
        """Fine rows that each stage needs for the rows [low, high) of the last one to be those of the whole grid.

        First the input of the first block, then for each block what its attention and its convolution must give.
        """
        if (low, high) == (0, total):
            return [(low, high)] * (1 + 2 * len(self.blocks))
        ranges = [(low, high)]
        for _ in self.blocks:
            low, high = max(0, low - 1), min(total, high + 1)  # the convolution's neighbours
            ranges.append((low, high))
            # Whole tiles and their halo; the first row begins a tile, as tiles must lie where they lie in the whole.
            low = max(0, (low // self.tile * self.tile - self.halo) // self.tile * self.tile)
            high = min(total, -(-high // self.tile) * self.tile + self.halo)
            ranges.append((low, high))
        return ranges[::-1]

    def _draft(
        self, features: Tensor, c: Tensor, context: Tensor, t: Tensor, top: int, bottom: int
    ) -> Tensor:
        """Rows [top, bottom) of the picture of :meth:`latents`."""
        p = self.patch_size
        first, last = top // p, -(-bottom // p)
        around = slice(
            max(0, first - 1), last + 1
        )  # tokens beyond are cut off again: there the padding is wrong
        z_0 = self._z_0(features[:, around], c, context[:, around], t)
        z_0 = z_0.to(self.readout.weight.dtype).permute(0, 3, 1, 2)
        tokens = self.readout(z_0).permute(0, 2, 3, 1)[:, first - around.start : last - around.start]
        return pixels(tokens, p)[:, top - first * p : bottom - first * p].permute(0, 3, 1, 2)

    def decode(self, z_0: Tensor) -> Tensor:
        """The picture [B, 3, H, W] of packed latents z_0 [B, h, w, d] alone, without a core; how a head is pretrained."""
        batch, rows, columns, _ = z_0.shape
        features = z_0.new_zeros(batch, rows, columns, self.open.in_features)
        c = z_0.new_zeros(batch, self.final.adaLN_modulation[-1].in_features)
        x_in = z_0.new_zeros(batch, 3, rows * self.patch_size, columns * self.patch_size)
        return self.forward_pixels(features, c, z_0, x_in, z_0.new_zeros(batch))

    def latents(self, features: Tensor, c: Tensor, x_in: Tensor, t: Tensor) -> Tensor:
        """The core's own guess of the teacher's latents, packed z_0 [B, h, w, d], which the draft is a picture of."""
        return self._z_0(features, c, self.pool(patchify(x_in, self.patch_size)), t)

    def _z_0(self, features: Tensor, c: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """``z_0 = z_t - t u`` of the core's velocity u (diffusers' sign is the other)."""
        out = self.final(features.flatten(1, 2), c=c).unflatten(1, (-1, features.shape[2]))
        return clean(z_t, out, t, self.latest_noise)

    def _angles(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Angles in radians of the rows [H, head_dim / 4] and columns [W, head_dim / 4] of a fine grid."""
        pairs = self.head_dim // 4
        speed = ROPE_THETA ** -(torch.arange(pairs, device=device) / pairs)
        rows, columns = (torch.arange(size, device=device)[:, None] * speed for size in (height, width))
        return rows, columns


def _as_one(size: int, step: int) -> bool:
    """Whether ``size`` rows are not gone through in steps: where gradients keep all of them anyway, and in a program."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or step >= size


def _read(start: int, stop: int, height: int, edge: int) -> tuple[int, int]:
    """Pixel rows within ``edge`` of [start, stop). All is a case of its own: torch.export proves nothing about a min."""
    if (start, stop) == (0, height):
        return 0, height
    return max(0, start - edge), min(height, stop + edge)


def continued(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """x with its first and last slice repeated. On a CPU a third of the time of `F.pad(mode="replicate")` in bf16."""
    if not before and not after:
        return x
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, -1, 1)
    return torch.cat([*[first] * before, x, *[last] * after], dim=axis)


def _surrounded(tokens: Tensor, draft: Tensor, f: int, crop: slice, before: int, after: int) -> Tensor:
    """The draft [B, 3, rows, W] and SiLU of fine tokens [B, H, W / f, C f^2] as pixels [B, before + rows + after, W + 2 EDGE,
    3 + C], the picture continued past its edges: each number is written once, to its place. Changes `tokens`.

    Args:
        crop: the draft's rows among those of the tokens.
    """
    batch, rows, columns, _ = tokens.shape
    bottom = before + rows * f
    channels = 3 + tokens.shape[3] // f**2
    near = tokens.new_empty(batch, bottom + after, columns * f + 2 * EDGE, channels)
    inner = near[:, before:bottom, EDGE:-EDGE]
    inner[:, crop, :, :3].copy_(draft.permute(0, 2, 3, 1))
    cells = tokens.unflatten(3, (f, f, -1)).transpose(2, 3)
    target = inner[..., 3:].unflatten(2, (columns, f)).unflatten(1, (rows, f))
    if tokens.device.type == "cuda":
        torch.ops.aten.silu.out(cells, out=target)
    else:  # where a SiLU of memory that does not lie together takes longer than a copy
        F.silu(tokens, inplace=True)
        target.copy_(cells)
    first, last = before + crop.start, before + crop.stop
    near[:, first:last, :EDGE] = near[:, first:last, EDGE : EDGE + 1]
    near[:, first:last, -EDGE:] = near[:, first:last, -EDGE - 1 : -EDGE]
    near[:, first - before : first] = near[:, first : first + 1]
    near[:, last : last + after] = near[:, last - 1 : last]
    return near[:, first - before : last + after]


def _within(inner: tuple[int, int], first: int) -> slice:
    """Rows ``inner`` of a tensor that begins at row ``first``."""
    return slice(inner[0] - first, inner[1] - first)


def _spread(tokens: Tensor, fold: int) -> Tensor:
    """Core tokens [B, h, w, fold^2 C] to the fine grid [B, H, W, C], (row, column, channel) order."""
    batch, height, width, _ = tokens.shape
    cells = tokens.view(batch, height, width, fold, fold, -1).transpose(2, 3)
    return cells.reshape(batch, height * fold, width * fold, -1)
