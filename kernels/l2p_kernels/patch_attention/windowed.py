"""Patch attention through SDPA over tiles with their halo: the CPU path and the baseline of the others.

Works in bands: a few rows of tiles (or, where the grid is small, a few whole pictures) at a time, so that the gathered
key windows stay near `BAND_BYTES` whatever the size of the grid. Tiles at the border have smaller windows instead of
masked ones (see `windows.py`), so nothing is computed only to be thrown away.

The backward pass recomputes the weights, with scores and softmax in fp32. It is written out as batched matrix products
because SDPA's own CPU backward is several times slower on windows this small (bf16, 64 queries x 196 keys x 32 channels,
one core: 92 ms written out, 300 ms through SDPA).

Legend: B batch, H W grid, h heads, d head_dim, N windows in flight, L keys of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import prologue
from .windows import Run, add_windows_, runs, tiles_of, windows_of

BAND_BYTES = (
    24 << 20
)  # gathered keys and values in flight; beyond the last-level cache a larger band gains nothing


@dataclass(frozen=True)
class Grid:
    """The operator's inputs and options, sliced alike by both passes."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    rows: Tensor | None
    columns: Tensor | None
    tile: int
    halo: int
    scale: float

    def table(self, first: int, last: int) -> tuple[Tensor, Tensor] | None:
        """RoPE cosines and sines of the grid rows `[first, last)`."""
        if self.rows is None:
            return None
        return prologue.rope_table(self.rows[first:last], self.columns, prologue.compute_dtype(self.q.dtype))

    def bands(self) -> tuple[list[slice], list[list[Run]], tuple[Run, ...]]:
        """Slices of the batch, bands of rows (each a list of runs), and the runs of columns."""
        batch, height, width, heads, head_dim = self.q.shape
        rows, columns = runs(height, self.tile, self.halo), runs(width, self.tile, self.halo)
        tallest = max(run.reach for run in rows)
        keys_a_row = sum(column.count * tallest * column.reach for column in columns)
        budget = max(
            1, BAND_BYTES // (2 * keys_a_row * heads * head_dim * self.k.element_size())
        )  # tile rows in flight

        bands: list[list[Run]] = [[]]
        for run in rows:
            while run.count:
                room = budget - sum(part.count for part in bands[-1])
                if room == 0:
                    bands.append([])
                    continue
                taken = min(room, run.count)
                bands[-1].append(run.slice(0, taken))
                run = run.slice(taken, run.count)
        pictures = max(1, budget // sum(run.count for run in rows))
        return [slice(i, min(i + pictures, batch)) for i in range(0, batch, pictures)], bands, columns


@dataclass(frozen=True)
class Window:
    """One group of equal windows of one band: where its queries and keys lie in the band's tensors."""

    row: Run  # queries and keys counted from the band's own first rows
    column: Run

    def queries(self, x: Tensor) -> Tensor:
        """`[b, rows, W, h, d]` -> `[N, queries, h, d]`."""
        return tiles_of(x, self.row, self.column).flatten(3, 4).flatten(0, 2)

    def keys(self, x: Tensor) -> Tensor:
        """`[b, rows, W, h, d]` -> `[N, L, h, d]`."""
        return windows_of(x, self.row, self.column).flatten(3, 4).flatten(0, 2)


def _bands(grid: Grid) -> Iterator[tuple[slice, slice, slice, list[Window]]]:
    """Yields (batch, query rows, key rows, windows) of every band."""
    batches, bands, columns = grid.bands()
    for pictures in batches:
        for band in bands:
            queries = slice(band[0].start, band[-1].stop)
            keys = slice(min(run.key_start for run in band), max(run.key_stop for run in band))
            local = [
                Run(r.start - queries.start, r.size, r.count, r.key_start - keys.start, r.reach, r.step)
                for r in band
            ]
            yield pictures, queries, keys, [Window(row, column) for row in local for column in columns]


def forward(grid: Grid) -> Tensor:
    """`[B, H, W, h, d]` in q's dtype, contiguous."""
    out = torch.empty_like(grid.q, memory_format=torch.contiguous_format)
    for pictures, queries, keys, windows in _bands(grid):
        q = prologue.forward(grid.q[pictures, queries], grid.q_norm, grid.table(queries.start, queries.stop))
        k = prologue.forward(grid.k[pictures, keys], grid.k_norm, grid.table(keys.start, keys.stop))
        v = grid.v[pictures, keys]
        for window in windows:
            operands = (window.queries(q), window.keys(k), window.keys(v))
            part = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in operands), scale=grid.scale)
            target = tiles_of(out[pictures, queries], window.row, window.column)
            target.copy_(part.transpose(1, 2).view(target.shape))
    return out


def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one softmax attention for q `[N, Q, h, d]` and k, v `[N, L, h, d]`, in the same layout."""
    exact = prologue.compute_dtype(q.dtype)
    # fp16 has the exponent range of neither gradients nor fast CPU products: take fp32 there. bf16 keeps bf16 operands.
    kept = torch.bfloat16 if q.dtype == torch.bfloat16 else exact
    windows, _, heads, _ = q.shape
    grad, q, k, v = (
        x.transpose(1, 2).to(kept, copy=True).flatten(0, 1) for x in (grad, q, k, v)
    )  # [N h, Q | L, d]
    scores = torch.bmm(q.to(exact), k.to(exact).transpose(1, 2)).mul_(scale)
    weights = scores.softmax(dim=-1).to(kept)
    grad_v = torch.bmm(weights.transpose(1, 2), grad)
    grad_weights = torch.bmm(grad, v.transpose(1, 2))
    grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, kept).mul_(scale)
    grad_q, grad_k = torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q)
    return tuple(x.unflatten(0, (windows, heads)).transpose(1, 2) for x in (grad_q, grad_k, grad_v))


def backward(grad: Tensor, grid: Grid) -> list[Tensor | None]:
    """Gradients of q, k, v, q_norm, k_norm (None where the input is None)."""
    exact = prologue.compute_dtype(grid.q.dtype)
    inputs = (grid.q, grid.k, grid.v)
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
    norms = [None if w is None else torch.zeros_like(w, dtype=exact) for w in (grid.q_norm, grid.k_norm)]
    sums: list[Tensor] = []
    current: slice | None = None

    def finish(pictures: slice) -> None:
        for index, (x, weight) in enumerate(((grid.q, grid.q_norm), (grid.k, grid.k_norm))):
            prologue.backward_into(
                grads[index][pictures],
                sums[index],
                x[pictures],
                weight,
                norms[index],
                grid.rows,
                grid.columns,
            )
        grads[2][pictures] = sums[2]

    for pictures, queries, keys, windows in _bands(grid):
        if pictures != current:
            if current is not None:
                finish(current)
            current = pictures
            sums = [torch.zeros_like(x[pictures], dtype=exact) for x in inputs]
        q = prologue.forward(grid.q[pictures, queries], grid.q_norm, grid.table(queries.start, queries.stop))
        k = prologue.forward(grid.k[pictures, keys], grid.k_norm, grid.table(keys.start, keys.stop))
        v = grid.v[pictures, keys]
        for window in windows:
            row, column = window.row, window.column
            grad_q, grad_k, grad_v = _attention_backward(
                window.queries(grad[pictures, queries]),
                window.queries(q),
                window.keys(k),
                window.keys(v),
                grid.scale,
            )
            target = tiles_of(sums[0][:, queries], row, column)
            target.copy_(grad_q.reshape(target.shape))
            for index, part in ((1, grad_k), (2, grad_v)):
                part = part.unflatten(0, (-1, row.count, column.count)).unflatten(
                    3, (row.reach, column.reach)
                )
                add_windows_(sums[index][:, keys], part, row, column)
    finish(current)
    return [
        *grads,
        *(n if n is None else n.to(w.dtype) for n, w in zip(norms, (grid.q_norm, grid.k_norm), strict=True)),
    ]
