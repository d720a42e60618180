"""Triton kernels of `impl="triton_strips"`: tiles of 8 x 8 queries, a halo of 4, a strip of tiles a program.

A tile of queries sees 16 x 16 keys. In blocks of 8 x 8 keys moved by the halo these are four whole blocks, so no score inside
the grid is masked; only the strips along its upper and lower edge and the two ends of each strip are. Where
wgmma leaves registers for it, a program walks along x: the column of keys that it loads finishes one tile and starts the next, so
keys and values are read twice rather than four times. Elsewhere, and backward, it takes one tile of queries (or block of keys
with its four tiles) after the other, or half of one.

`turn_kernel` goes first: it norms and turns q and k once, multiplies q by the softmax's scale (base 2), and stores each pair of
channels that RoPE turns side by side, in which order the gradients leave their accumulator too: there a pair is in one thread.

Blocks come through tensor descriptors, which read zeros outside the grid. `lse` (base 2) and `delta` are `[B h, tiles, 64]`.
Legend: D head_dim, P = D / 2 pairs of channels, `plane` one head of one picture.
"""

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def table_kernel(rows, columns, table, height, width, N: tl.constexpr, BN: tl.constexpr):
    """`table [H + W, 2, N]`: cosine and sine of each angle, to 1e-6 for angles of some thousand radians."""
    line = tl.program_id(0)
    c = tl.arange(0, BN)
    if line < height:
        angle = tl.load(rows + line * N + c, mask=c < N, other=0.0).to(tl.float32)
    else:
        angle = tl.load(columns + (line - height) * N + c, mask=c < N, other=0.0).to(tl.float32)
    # To an eighth of a turn from the nearest quarter (pi / 2 in three parts), then Taylor's polynomials. The library's own
    # sine keeps a table for larger angles on the stack.
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    x = (
        (angle - quarters * 1.5703125) - quarters * 4.837512969970703125e-4
    ) - quarters * 7.549789948768648e-8
    quarter = quarters.to(tl.int32) & 3
    y = x * x
    sine = x * (1 + y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y * (1 / 362880)))))
    cosine = 1 + y * (-0.5 + y * (1 / 24 + y * (-1 / 720 + y * (1 / 40320 + y * (-1 / 3628800)))))
    odd = (quarter & 1) == 1
    cos, sin = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    cos = tl.where((quarter == 1) | (quarter == 2), -cos, cos)
    sin = tl.where(quarter >= 2, -sin, sin)
    tl.store(table + line * 2 * N + c, cos, mask=c < N)
    tl.store(table + (line * 2 + 1) * N + c, sin, mask=c < N)


@triton.jit
def load_angles(table, y, x, height, D: tl.constexpr):
    """Cosines and sines `[positions, P]`: the first half of the pairs turns with y, the second with x."""
    p = tl.arange(0, D // 2)
    line = tl.where((p < D // 4)[None, :], y[:, None], height + x[:, None])
    at = table + line * (D // 2) + (p % (D // 4))[None, :]
    return tl.load(at), tl.load(at + D // 4)


@triton.jit
def first_channels(D: tl.constexpr):
    """The first channel of each pair `[P]`; the second is D / 4 further."""
    p = tl.arange(0, D // 2)
    return p // (D // 4) * (D // 2) + p % (D // 4)


@triton.jit
def turn(x, out, weight, table, at, place, py, px, inside, height, factor, D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr):  # fmt: skip
    """Rows at `x + at` to rows `place` of `out`, normed, turned, multiplied by `factor`, pairs side by side."""
    c = first_channels(D)
    a = tl.load(x + at[:, None] + c[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    b = tl.load(x + at[:, None] + c[None, :] + D // 4, mask=inside[:, None], other=0.0).to(tl.float32)
    if NORM:
        rstd = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + 1e-6)[:, None]
        a = a * rstd * tl.load(weight + c).to(tl.float32)[None, :]
        b = b * rstd * tl.load(weight + c + D // 4).to(tl.float32)[None, :]
    if ROPE:
        cos, sin = load_angles(table, py, px, height, D)
        a, b = a * cos - b * sin, a * sin + b * cos
    pairs = tl.reshape(tl.join(a * factor, b * factor), (a.shape[0], D))
    to = out + place[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(to, pairs.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def turn_kernel(
    q, k, q_out, k_out, q_weight, k_weight, table, height, width, heads, scale,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h,
    D: tl.constexpr, NORM_Q: tl.constexpr, NORM_K: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """q and k `[B, H, W, h, D]` -> `[B h, H, W, D]`."""
    head = tl.program_id(0) % heads
    position = tl.program_id(0) // heads * 64 + tl.arange(0, 64)
    batch = tl.program_id(1).to(tl.int64)
    inside = position < height * width
    y, x = tl.minimum(position // width, height - 1), position % width
    place = (batch * heads + head) * height * width + position
    at = batch * q_b + head * q_h + y.to(tl.int64) * q_y + x.to(tl.int64) * q_x
    turn(q, q_out, q_weight, table, at, place, y, x, inside, height, scale, D, NORM_Q, ROPE)
    at = batch * k_b + head * k_h + y.to(tl.int64) * k_y + x.to(tl.int64) * k_x
    turn(k, k_out, k_weight, table, at, place, y, x, inside, height, 1.0, D, NORM_K, ROPE)


@triton.jit
def turn_back(
    grad, factor, raw, out, weight, table, raw_y, raw_x, y, x, batch, head, heads, height, width, sums_a, sums_b,
    D: tl.constexpr, HELD: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """The gradient `[HELD * 8, D]` of the turned rows at (y, x) to that of the rows of `raw`, stored in `out [B, H, W, h, D]`.

    Multiplies it by `factor`, and adds the weight's gradient, without that, to `sums_a`, `sums_b [P]`.
    """
    py, px, inside = cells(y, x, height, width, HELD)
    c = first_channels(D)
    grad = tl.where(inside[:, None], grad, 0.0)  # of keys outside the grid it is anything
    a, b = tl.split(tl.reshape(grad, (HELD * 8, D // 2, 2)))
    if ROPE:
        cos, sin = load_angles(table, py, px, height, D)
        a, b = a * cos + b * sin, b * cos - a * sin
    if NORM:
        at = raw + y * raw_y.to(tl.int64) + x * raw_x.to(tl.int64)
        at += offsets(raw_y, raw_x, HELD)[:, None] + c[None, :]
        y_a = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
        y_b = tl.load(at + D // 4, mask=inside[:, None], other=0.0).to(tl.float32)
        rstd = tl.rsqrt((tl.sum(y_a * y_a, 1) + tl.sum(y_b * y_b, 1)) / D + 1e-6)[:, None]
        y_a, y_b = y_a * rstd, y_b * rstd
        of_a, of_b = a * y_a, b * y_b
        sums_a += tl.sum(of_a, 0)
        sums_b += tl.sum(of_b, 0)
        w_a = tl.load(weight + c).to(tl.float32)[None, :]
        w_b = tl.load(weight + c + D // 4).to(tl.float32)[None, :]
        mean = ((tl.sum(of_a * w_a, 1) + tl.sum(of_b * w_b, 1)) / D)[:, None]
        rstd = rstd * factor
        a, b = (a * w_a - y_a * mean) * rstd, (b * w_b - y_b * mean) * rstd
    else:
        a, b = a * factor, b * factor
    target = out + corner(y, x, batch, head, heads, height, width, D)
    target += offsets(width * heads * D, heads * D, HELD)[:, None] + c[None, :]
    tl.store(target, a.to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(target + D // 4, b.to(out.dtype.element_ty), mask=inside[:, None])
    return sums_a, sums_b


@triton.jit
def strip_of(heads, length, each):
    """Program number -> (head, row of tiles, first tile, end of the strip); `length` tiles a row."""
    pid = tl.program_id(0)
    strips = tl.cdiv(length, each)
    first = pid // heads % strips * each
    return pid % heads, pid // (heads * strips), first, tl.minimum(first + each, length)


@triton.jit
def cells(y, x, height, width, HELD: tl.constexpr):
    """Of the HELD x 8 cells at (y, x): rows and columns, clamped to the grid, and which are inside."""
    r = tl.arange(0, HELD * 8)
    py, px = y + r // 8, x + r % 8
    inside = (py >= 0) & (py < height) & (px >= 0) & (px < width)
    return tl.minimum(tl.maximum(py, 0), height - 1), tl.minimum(tl.maximum(px, 0), width - 1), inside


@triton.jit
def offsets(stride_y, stride_x, HELD: tl.constexpr):
    """Of these cells from the first."""
    r = tl.arange(0, HELD * 8)
    return r // 8 * stride_y + r % 8 * stride_x


@triton.jit
def corner(y, x, batch, head, heads, height, width, D: tl.constexpr):
    """Where the tile at (y, x) begins in `[B, H, W, h, D]`."""
    return (((batch.to(tl.int64) * height + y) * width + x) * heads + head) * D


@triton.jit
def held_rows(row, HELD: tl.constexpr):
    """A row of HELD x 8 cells: the row of tiles that it is in, and its first row in these."""
    return row // (8 // HELD), row % (8 // HELD) * HELD


@triton.jit
def load_block(k, v, plane, batch, head, y, x, D: tl.constexpr, ROWS: tl.constexpr):
    return k.load([plane, y, x, 0]).reshape([ROWS * 8, D]), v.load([batch, y, x, head, 0]).reshape(
        [ROWS * 8, D]
    )


@triton.jit
def start(queries, keys, values, seen, MASK: tl.constexpr):
    """The first column of keys that a tile sees: (highest score, sum of weights, weighted values)."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    if MASK:
        scores = tl.where(seen[None, :], scores, float("-inf"))
    highest = tl.max(scores, 1)
    weights = tl.exp2(scores - highest[:, None])
    return highest, tl.sum(weights, 1), tl.dot(weights.to(values.dtype), values, input_precision="ieee")


@triton.jit
def go_on(queries, keys, values, seen, highest, total, acc, MASK: tl.constexpr):
    """The second column."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    if MASK:
        scores = tl.where(seen[None, :], scores, float("-inf"))
    new = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - new[:, None])
    kept = tl.exp2(highest - new)
    acc = tl.dot(weights.to(values.dtype), values, acc * kept[:, None], input_precision="ieee")
    return new, total * kept + tl.sum(weights, 1), acc


@triton.jit
def finish(out, lse, highest, total, acc, plane, batch, head, heads, height, width, row, cut, tile, D: tl.constexpr, HELD: tl.constexpr):  # fmt: skip
    _, _, inside = cells(row * 8 + cut, tile * 8, height, width, HELD)
    to = out + corner(row * 8 + cut, tile * 8, batch, head, heads, height, width, D)
    to += offsets(width * heads * D, heads * D, HELD)[:, None] + tl.arange(0, D)[None, :]
    tl.store(to, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tiles = tl.cdiv(height, 8) * tl.cdiv(width, 8)
    block = plane.to(tl.int64) * tiles + row * tl.cdiv(width, 8) + tile
    tl.store(lse + block * 64 + cut * 8 + tl.arange(0, HELD * 8), highest + tl.log2(total))


@triton.jit
def walk(q, k, v, out, lse, plane, batch, head, heads, height, width, row, first, last, D: tl.constexpr, MASK: tl.constexpr):  # fmt: skip
    r = tl.arange(0, 128)
    y = row * 8
    seen_y = (y - 4 + r // 8 >= 0) & (y - 4 + r // 8 < height)
    queries = q.load([plane, y, first * 8, 0]).reshape([64, D])
    keys = k.load([plane, y - 4, first * 8 - 4, 0]).reshape([128, D])
    values = v.load([batch, y - 4, first * 8 - 4, head, 0]).reshape([128, D])
    x = first * 8 - 4 + r % 8
    highest, total, acc = start(queries, keys, values, seen_y & (x >= 0) & (x < width), True)
    for tile in range(first + 1, last):
        keys = k.load([plane, y - 4, tile * 8 - 4, 0]).reshape([128, D])
        values = v.load([batch, y - 4, tile * 8 - 4, head, 0]).reshape([128, D])
        seen = seen_y & (tile * 8 - 4 + r % 8 < width)
        highest, total, acc = go_on(queries, keys, values, seen, highest, total, acc, MASK)
        finish(
            out, lse, highest, total, acc, plane, batch, head, heads, height, width, row, 0, tile - 1, D, 8
        )
        queries = q.load([plane, y, tile * 8, 0]).reshape([64, D])
        highest, total, acc = start(queries, keys, values, seen, MASK)
    keys = k.load([plane, y - 4, last * 8 - 4, 0]).reshape([128, D])
    values = v.load([batch, y - 4, last * 8 - 4, head, 0]).reshape([128, D])
    x = last * 8 - 4 + r % 8
    highest, total, acc = go_on(queries, keys, values, seen_y & (x < width), highest, total, acc, True)
    finish(out, lse, highest, total, acc, plane, batch, head, heads, height, width, row, 0, last - 1, D, 8)


@triton.jit
def attend(q, k, v, plane, batch, head, height, width, row, cut, tile, D: tl.constexpr, HELD: tl.constexpr, UNROLL: tl.constexpr, MASK: tl.constexpr):  # fmt: skip
    """Rows of a tile against its four blocks of keys; the first of them has a key inside the grid."""
    r = tl.arange(0, 64)
    queries = q.load([plane, row * 8 + cut, tile * 8, 0]).reshape([HELD * 8, D])
    highest = tl.full([HELD * 8], float("-inf"), tl.float32)
    total = tl.zeros([HELD * 8], tl.float32)
    acc = tl.zeros([HELD * 8, D], tl.float32)
    for block in tl.range(0, 4, loop_unroll_factor=UNROLL):
        y, x = row * 8 - 4 + block // 2 * 8, tile * 8 - 4 + block % 2 * 8
        keys, values = load_block(k, v, plane, batch, head, y, x, D, 8)
        seen = (y + r // 8 >= 0) & (y + r // 8 < height) & (x + r % 8 >= 0) & (x + r % 8 < width)
        highest, total, acc = go_on(queries, keys, values, seen, highest, total, acc, MASK)
    return highest, total, acc


@triton.jit
def forward_kernel(
    q, k, v, out, lse, height, width, heads, each,
    D: tl.constexpr, HELD: tl.constexpr, UNROLL: tl.constexpr, WALK: tl.constexpr,
):  # fmt: skip
    """A strip a program: with WALK of whole tiles and keys `[1, 16, 8, D]`, else HELD rows and keys `[1, 8, 8, D]`."""
    head, held, first, last = strip_of(heads, tl.cdiv(width, 8), each)
    row, cut = held_rows(held, HELD)
    batch = tl.program_id(1)
    plane = batch * heads + head
    rows_outside = (row == 0) | (row * 8 + 12 > height)
    if WALK:
        if rows_outside | (last * 8 - 4 > width):  # keys outside the grid on the way
            walk(q, k, v, out, lse, plane, batch, head, heads, height, width, row, first, last, D, True)
        else:
            walk(q, k, v, out, lse, plane, batch, head, heads, height, width, row, first, last, D, False)
    else:
        for tile in range(first, last):
            if rows_outside | (tile == 0) | (tile * 8 + 12 > width):
                highest, total, acc = attend(
                    q, k, v, plane, batch, head, height, width, row, cut, tile, D, HELD, UNROLL, True
                )
            else:
                highest, total, acc = attend(
                    q, k, v, plane, batch, head, height, width, row, cut, tile, D, HELD, UNROLL, False
                )
            finish(
                out,
                lse,
                highest,
                total,
                acc,
                plane,
                batch,
                head,
                heads,
                height,
                width,
                row,
                cut,
                tile,
                D,
                HELD,
            )


@triton.jit
def load_tile(q, grad, out, lse, delta, plane, batch, head, height, width, row, cut, tile, D: tl.constexpr, HELD: tl.constexpr):  # fmt: skip
    """Rows `cut` and on of a tile: queries, gradients, lse and delta, which is made and stored here."""
    y, x = row * 8 + cut, tile * 8
    queries = q.load([plane, y, x, 0]).reshape([HELD * 8, D])
    grads = grad.load([batch, y, x, head, 0]).reshape([HELD * 8, D])
    outs = out.load([batch, y, x, head, 0]).reshape([HELD * 8, D])
    deltas = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tiles = tl.cdiv(height, 8) * tl.cdiv(width, 8)
    at = (plane.to(tl.int64) * tiles + row * tl.cdiv(width, 8) + tile) * 64 + cut * 8 + tl.arange(0, HELD * 8)
    tl.store(delta + at, deltas)
    return queries, grads, tl.load(lse + at), deltas


@triton.jit
def grad_q_step(queries, keys, values, grads, lse, delta, acc):
    """Adds one block of keys to the gradient of turned queries.

    A weight is at most 1, which holds back those of keys outside the grid: these are zeros, and add nothing.
    """
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") - lse[:, None]
    weights = tl.exp2(tl.minimum(scores, 0.0))
    grad_weights = tl.dot(grads, tl.trans(values), input_precision="ieee")
    grad_scores = (weights * (grad_weights - delta[:, None])).to(keys.dtype)
    return tl.dot(grad_scores, keys, acc, input_precision="ieee")


@triton.jit
def grad_q_kernel(
    q, k, v, grad, out, lse, delta, raw, weight, table, grad_q, sums,
    height, width, heads, each, scale, raw_b, raw_y, raw_x, raw_h,
    D: tl.constexpr, HELD: tl.constexpr, UNROLL: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Gradient of q, a strip of HELD rows of queries a program. `sums [programs, D]`: parts of the weight's gradient."""
    head, held, first, last = strip_of(heads, tl.cdiv(width, 8), each)
    row, cut = held_rows(held, HELD)
    batch = tl.program_id(1)
    plane = batch * heads + head
    raw += batch.to(tl.int64) * raw_b + head * raw_h
    sums_a = tl.zeros([D // 2], tl.float32)
    sums_b = tl.zeros([D // 2], tl.float32)
    for tile in range(first, last):
        queries, grads, lses, deltas = load_tile(
            q, grad, out, lse, delta, plane, batch, head, height, width, row, cut, tile, D, HELD
        )
        acc = tl.zeros([HELD * 8, D], tl.float32)
        for block in tl.range(0, 4, loop_unroll_factor=UNROLL):
            y, x = row * 8 - 4 + block // 2 * 8, tile * 8 - 4 + block % 2 * 8
            keys, values = load_block(k, v, plane, batch, head, y, x, D, 8)
            acc = grad_q_step(queries, keys, values, grads, lses, deltas, acc)
        sums_a, sums_b = turn_back(
            acc, scale, raw, grad_q, weight, table, raw_y, raw_x, row * 8 + cut, tile * 8,
            batch, head, heads, height, width, sums_a, sums_b, D, HELD, NORM, ROPE,
        )  # fmt: skip
    store_sums(sums, sums_a, sums_b, scale, D, NORM)


@triton.jit
def store_sums(sums, sums_a, sums_b, factor, D: tl.constexpr, NORM: tl.constexpr):
    if NORM:
        program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        at = sums + program * D + first_channels(D)
        tl.store(at, sums_a * factor)
        tl.store(at + D // 4, sums_b * factor)


@triton.jit
def grad_kv_step(keys, values, queries, grads, lse, delta, plane, height, width, row, tile, acc_k, acc_v):
    """Adds a tile of queries, zeros where there is none, to the gradients of a block of turned keys and of values."""
    rows, columns = tl.cdiv(height, 8), tl.cdiv(width, 8)
    there = (row >= 0) & (row < rows) & (tile >= 0) & (tile < columns)
    at = (plane.to(tl.int64) * rows * columns + row * columns + tile) * 64 + tl.arange(0, 64)
    scores = tl.dot(keys, tl.trans(queries), input_precision="ieee")
    weights = tl.exp2(scores - tl.load(lse + at, mask=there, other=0.0)[None, :])
    acc_v = tl.dot(weights.to(grads.dtype), grads, acc_v, input_precision="ieee")
    grad_weights = tl.dot(values, tl.trans(grads), input_precision="ieee")
    grad_scores = weights * (grad_weights - tl.load(delta + at, mask=there, other=0.0)[None, :])
    return tl.dot(grad_scores.to(queries.dtype), queries, acc_k, input_precision="ieee"), acc_v


@triton.jit
def grad_kv_kernel(
    q, k, v, grad, lse, delta, raw, weight, table, grad_k, grad_v, sums,
    height, width, heads, each, raw_b, raw_y, raw_x, raw_h,
    D: tl.constexpr, HELD: tl.constexpr, UNROLL: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v, a strip of HELD rows of keys a program, of blocks that four tiles of queries see."""
    head, held, first, last = strip_of(heads, tl.cdiv(width + 4, 8), each)
    row, cut = held_rows(held, HELD)
    batch = tl.program_id(1)
    plane = batch * heads + head
    raw += batch.to(tl.int64) * raw_b + head * raw_h
    y = row * 8 - 4 + cut
    sums_a = tl.zeros([D // 2], tl.float32)
    sums_b = tl.zeros([D // 2], tl.float32)
    for block in range(first, last):
        x = block * 8 - 4
        keys, values = load_block(k, v, plane, batch, head, y, x, D, HELD)
        acc_k = tl.zeros([HELD * 8, D], tl.float32)
        acc_v = tl.zeros([HELD * 8, D], tl.float32)
        for tile in tl.range(0, 4, loop_unroll_factor=UNROLL):
            tile_y, tile_x = row - 1 + tile // 2, block - 1 + tile % 2
            queries, grads = load_block(q, grad, plane, batch, head, tile_y * 8, tile_x * 8, D, 8)
            acc_k, acc_v = grad_kv_step(
                keys, values, queries, grads, lse, delta, plane, height, width, tile_y, tile_x, acc_k, acc_v
            )
        _, _, inside = cells(y, x, height, width, HELD)
        to = grad_v + corner(y, x, batch, head, heads, height, width, D)
        to += offsets(width * heads * D, heads * D, HELD)[:, None] + tl.arange(0, D)[None, :]
        tl.store(to, acc_v.to(grad_v.dtype.element_ty), mask=inside[:, None])
        sums_a, sums_b = turn_back(
            acc_k, LN_2, raw, grad_k, weight, table, raw_y, raw_x, y, x,
            batch, head, heads, height, width, sums_a, sums_b, D, HELD, NORM, ROPE,
        )  # fmt: skip
    store_sums(sums, sums_a, sums_b, LN_2, D, NORM)


@triton.jit
def sum_kernel(sums_q, sums_k, grad_q, grad_k, programs_q, programs_k, D: tl.constexpr, NORM_Q: tl.constexpr, NORM_K: tl.constexpr):  # fmt: skip
    """The weights' gradients `[D]` from their parts: the first program q's, the second k's."""
    c = tl.arange(0, D)
    r = tl.arange(0, 32)
    acc = tl.zeros([32, D], tl.float32)
    if tl.program_id(0) == 0:
        if NORM_Q:
            for start in range(0, programs_q, 32):
                at = sums_q + (start + r)[:, None] * D + c[None, :]
                acc += tl.load(at, mask=(start + r < programs_q)[:, None], other=0.0)
            tl.store(grad_q + c, tl.sum(acc, 0).to(grad_q.dtype.element_ty))
    else:
        if NORM_K:
            for start in range(0, programs_k, 32):
                at = sums_k + (start + r)[:, None] * D + c[None, :]
                acc += tl.load(at, mask=(start + r < programs_k)[:, None], other=0.0)
            tl.store(grad_k + c, tl.sum(acc, 0).to(grad_k.dtype.element_ty))
