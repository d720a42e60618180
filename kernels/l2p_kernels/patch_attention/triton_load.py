"""What every patch-attention kernel does first: find its place on the grid, and load rows normed and turned.

A channel's RoPE partner is a second load of the same cache line, so no tensor of turned q or k is ever written.
Legend: D head_dim, BD its power of two, BQ queries of a block. Addresses are int64.
"""

import triton
import triton.language as tl


@triton.jit
def load_rows(
    base, stride_y, stride_x, y, x, inside, weight, table, height,
    D: tl.constexpr, BD: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Rows at grid positions (y, x): `[N, BD]` in the tensor's dtype, normed and turned where asked."""
    c = tl.arange(0, BD)
    at = base + y.to(tl.int64)[:, None] * stride_y + x.to(tl.int64)[:, None] * stride_x
    mask = inside[:, None] & (c < D)[None, :]
    rows = tl.load(at + c[None, :], mask=mask, other=0.0)
    if NORM or ROPE:
        PAIRS: tl.constexpr = D // 4
        dtype = rows.dtype
        value = rows.to(tl.float32)
        second = (c // PAIRS) % 2 == 1
        mate = tl.where(second, c - PAIRS, c + PAIRS)
        if ROPE:
            other = tl.load(at + mate[None, :], mask=mask, other=0.0).to(tl.float32)
        if NORM:
            rstd = tl.rsqrt(tl.sum(value * value, 1) / D + 1e-6)[:, None]
            value = value * rstd * tl.load(weight + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
            if ROPE:
                other = other * rstd * tl.load(weight + mate, mask=c < D, other=0.0).to(tl.float32)[None, :]
        if ROPE:  # table [H + W, (cos, sin), PAIRS]: first the rows' lines, then the columns'
            line = tl.where((c < D // 2)[None, :], y[:, None], height + x[:, None])
            angle = table + line * (2 * PAIRS) + (c % PAIRS)[None, :]
            cos = tl.load(angle, mask=mask, other=0.0)
            sin = tl.load(angle + PAIRS, mask=mask, other=0.0)
            value = value * cos + tl.where(second[None, :], other, -other) * sin
        rows = value.to(dtype)
    return rows


@triton.jit
def query_block(pid, heads, height, width, TILE: tl.constexpr, BQ: tl.constexpr):
    """Program number -> (head, tile row, tile column, y, x, inside [BQ]). Neighbours in time share key windows in L2."""
    CHUNKS: tl.constexpr = (TILE * TILE + BQ - 1) // BQ
    head = pid % heads
    chunk = pid // heads % CHUNKS
    tile = pid // (heads * CHUNKS)
    tiles_x = tl.cdiv(width, TILE)
    tile_y, tile_x = tile // tiles_x, tile % tiles_x
    local = chunk * BQ + tl.arange(0, BQ)
    y, x = tile_y * TILE + local // TILE, tile_x * TILE + local % TILE
    return head, tile_y, tile_x, y, x, (local < TILE * TILE) & (y < height) & (x < width)


@triton.jit
def window(tile, n, TILE: tl.constexpr, HALO: tl.constexpr):
    """First key and number of keys that a tile sees along one axis of length n."""
    first = tl.maximum(tile * TILE - HALO, 0)
    return first, tl.minimum((tile + 1) * TILE + HALO, n) - first
