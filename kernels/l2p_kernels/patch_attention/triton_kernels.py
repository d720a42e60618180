"""The Triton kernels of patch attention: forward, gradient of q, gradient of k and v.

All read the `[B, H, W, heads, head_dim]` layout as it lies. Norm and RoPE happen when rows are loaded (`triton_load.py`).
Queries are worked in blocks of at most `BLOCK_Q` of one tile; their window is clipped to the grid before its keys are
numbered, so no block of keys is empty and the softmax never sees a row without keys.

Legend: D head_dim, BD its power of two, BQ queries and BK keys of a block; `lse` is in base 2. Addresses are int64.
"""

import triton
import triton.language as tl

from .triton_load import load_rows, query_block, window


@triton.jit
def attend(q, k, v, valid, highest, total, acc, scale):
    """One step of the online softmax; scores in base 2."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(valid[None, :], scores, float("-inf"))
    new = tl.maximum(highest, tl.max(scores, 1))
    kept = tl.exp2(highest - new)
    weights = tl.exp2(scores - new[:, None])
    acc = acc * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new, total * kept + tl.sum(weights, 1), acc


@triton.jit
def forward_kernel(
    q, k, v, q_weight, k_weight, table, out, lse,
    height, width, heads, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    TILE: tl.constexpr, HALO: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    NORM_Q: tl.constexpr, NORM_K: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    head, tile_y, tile_x, y, x, inside = query_block(tl.program_id(0), heads, height, width, TILE, BQ)
    batch = tl.program_id(1).to(tl.int64)
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    queries = load_rows(q, q_y, q_x, y, x, inside, q_weight, table, height, D, BD, NORM_Q, ROPE)  # [BQ, BD]

    highest = tl.full([BQ], float("-inf"), tl.float32)
    total = tl.zeros([BQ], tl.float32)
    acc = tl.zeros([BQ, BD], tl.float32)
    first_y, rows = window(tile_y, height, TILE, HALO)
    first_x, columns = window(tile_x, width, TILE, HALO)
    for start in range(0, rows * columns, BK):
        index = start + tl.arange(0, BK)
        valid = index < rows * columns
        key_y, key_x = first_y + index // columns, first_x + index % columns
        keys = load_rows(k, k_y, k_x, key_y, key_x, valid, k_weight, table, height, D, BD, NORM_K, ROPE)
        values = load_rows(v, v_y, v_x, key_y, key_x, valid, v, table, height, D, BD, False, False)
        highest, total, acc = attend(queries, keys, values, valid, highest, total, acc, scale)

    c = tl.arange(0, BD)
    position = (batch * height + y) * width + x
    at = out + (position * heads + head)[:, None] * D + c[None, :]
    tl.store(at, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None] & (c < D)[None, :])
    tl.store(lse + position * heads + head, highest + tl.log2(total), mask=inside)


@triton.jit
def grad_q_step(q, k, v, grad, valid, lse, delta, acc, scale):
    """Adds one block of keys to the gradient of the queries (still without the scale)."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    weights = tl.where(valid[None, :], tl.exp2(scores - lse[:, None]), 0.0)
    grad_weights = tl.dot(grad, tl.trans(v), input_precision="ieee")
    grad_scores = weights * (grad_weights - delta[:, None])
    return acc + tl.dot(grad_scores.to(k.dtype), k, input_precision="ieee")


@triton.jit
def grad_q_kernel(
    q, k, v, q_weight, k_weight, table, out, lse, grad, delta, grad_q,
    height, width, heads, scale, grad_scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    TILE: tl.constexpr, HALO: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    NORM_Q: tl.constexpr, NORM_K: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Gradient of the normed and turned q, and `delta = sum(grad * out)`, which the other kernels read."""
    head, tile_y, tile_x, y, x, inside = query_block(tl.program_id(0), heads, height, width, TILE, BQ)
    batch = tl.program_id(1).to(tl.int64)
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    queries = load_rows(q, q_y, q_x, y, x, inside, q_weight, table, height, D, BD, NORM_Q, ROPE)
    c = tl.arange(0, BD)
    position = (batch * height + y) * width + x
    row = position * heads + head
    at, mask = row[:, None] * D + c[None, :], inside[:, None] & (c < D)[None, :]
    grads = tl.load(grad + at, mask=mask, other=0.0)
    outs = tl.load(out + at, mask=mask, other=0.0)
    deltas = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(delta + row, deltas, mask=inside)
    lses = tl.load(lse + row, mask=inside, other=0.0)

    acc = tl.zeros([BQ, BD], tl.float32)
    first_y, rows = window(tile_y, height, TILE, HALO)
    first_x, columns = window(tile_x, width, TILE, HALO)
    for start in range(0, rows * columns, BK):
        index = start + tl.arange(0, BK)
        valid = index < rows * columns
        key_y, key_x = first_y + index // columns, first_x + index % columns
        keys = load_rows(k, k_y, k_x, key_y, key_x, valid, k_weight, table, height, D, BD, NORM_K, ROPE)
        values = load_rows(v, v_y, v_x, key_y, key_x, valid, v, table, height, D, BD, False, False)
        acc = grad_q_step(queries, keys, values, grads, valid, lses, deltas, acc, scale)
    tl.store(grad_q + at, (acc * grad_scale).to(grad_q.dtype.element_ty), mask=mask)


@triton.jit
def grad_kv_step(q, k, v, grad, seen, lse, delta, grad_k, grad_v, scale):
    """Adds one block of queries to the gradients of a block of keys and values; `seen [BK, BQ]`."""
    scores = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
    weights = tl.where(seen, tl.exp2(scores - lse[None, :]), 0.0)
    grad_v += tl.dot(weights.to(grad.dtype), grad, input_precision="ieee")
    grad_weights = tl.dot(v, tl.trans(grad), input_precision="ieee")
    grad_scores = weights * (grad_weights - delta[None, :])
    return grad_k + tl.dot(grad_scores.to(q.dtype), q, input_precision="ieee"), grad_v


@triton.jit
def grad_kv_kernel(
    q, k, v, q_weight, k_weight, table, lse, grad, delta, grad_k, grad_v,
    height, width, heads, scale, grad_scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    TILE: tl.constexpr, HALO: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    NORM_Q: tl.constexpr, NORM_K: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Gradients of the normed and turned k, and of v.

    Key blocks are tiles moved by the halo: keys `[i*tile + halo, (i+1)*tile + halo)` are seen by whole tiles of queries
    only (by 2 x 2 of them where halo is half a tile), so almost no product is masked away.
    """
    SHIFT: tl.constexpr = HALO % TILE - TILE if HALO % TILE else 0
    CHUNKS: tl.constexpr = (TILE * TILE + BK - 1) // BK
    pid = tl.program_id(0)
    head = pid % heads
    chunk = pid // heads % CHUNKS
    block = pid // (heads * CHUNKS)
    blocks_x = tl.cdiv(width - SHIFT, TILE)
    block_y, block_x = block // blocks_x * TILE + SHIFT, block % blocks_x * TILE + SHIFT
    batch = tl.program_id(1).to(tl.int64)
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h

    local = chunk * BK + tl.arange(0, BK)
    key_y, key_x = block_y + local // TILE, block_x + local % TILE
    inside = (local < TILE * TILE) & (key_y >= 0) & (key_x >= 0) & (key_y < height) & (key_x < width)
    keys = load_rows(k, k_y, k_x, key_y, key_x, inside, k_weight, table, height, D, BD, NORM_K, ROPE)
    values = load_rows(v, v_y, v_x, key_y, key_x, inside, v, table, height, D, BD, False, False)

    # Queries of all tiles that may see the block; the maxima keep the dividends of // at or above zero.
    c = tl.arange(0, BD)
    first_y = tl.maximum(tl.maximum(block_y, 0) - HALO, 0) // TILE * TILE
    first_x = tl.maximum(tl.maximum(block_x, 0) - HALO, 0) // TILE * TILE
    rows = tl.minimum(((block_y + TILE - 1 + HALO) // TILE + 1) * TILE, height) - first_y
    columns = tl.minimum(((block_x + TILE - 1 + HALO) // TILE + 1) * TILE, width) - first_x
    acc_k = tl.zeros([BK, BD], tl.float32)
    acc_v = tl.zeros([BK, BD], tl.float32)
    for start in range(0, rows * columns, BQ):
        index = start + tl.arange(0, BQ)
        valid = index < rows * columns
        y, x = first_y + index // columns, first_x + index % columns
        top, left = y // TILE * TILE - HALO, x // TILE * TILE - HALO
        seen_y = (key_y[:, None] >= top[None, :]) & (key_y[:, None] < top[None, :] + TILE + 2 * HALO)
        seen_x = (key_x[:, None] >= left[None, :]) & (key_x[:, None] < left[None, :] + TILE + 2 * HALO)
        queries = load_rows(q, q_y, q_x, y, x, valid, q_weight, table, height, D, BD, NORM_Q, ROPE)
        row = ((batch * height + y) * width + x) * heads + head
        grads = tl.load(
            grad + row[:, None] * D + c[None, :], mask=valid[:, None] & (c < D)[None, :], other=0.0
        )
        lses = tl.load(lse + row, mask=valid, other=0.0)
        deltas = tl.load(delta + row, mask=valid, other=0.0)
        seen = seen_y & seen_x & valid[None, :] & inside[:, None]
        acc_k, acc_v = grad_kv_step(queries, keys, values, grads, seen, lses, deltas, acc_k, acc_v, scale)

    row = ((batch * height + key_y) * width + key_x) * heads + head
    at, mask = row[:, None] * D + c[None, :], inside[:, None] & (c < D)[None, :]
    tl.store(grad_k + at, (acc_k * grad_scale).to(grad_k.dtype.element_ty), mask=mask)
    tl.store(grad_v + at, acc_v.to(grad_v.dtype.element_ty), mask=mask)
