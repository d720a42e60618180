"""pixel_film in Triton: the modulation is the accumulator of a matrix product and never leaves the registers.

Legend: N tokens, P pixels of a patch, C pixel channels, D token width; BN, BC, BD blocks of them. A program works on one
pixel position of BN patches, so the weights it reads, `[2, C, D]`, serve BN tokens. Addresses are int64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

STAGES = {
    "forward": 3,
    "grad_pixels": 3,
    "grad_tokens": 2,
    "grad_weight": 3,
}  # a third stage spills on sm_120


@triton.jit
def block(pointer, row, column, rows, columns, stride):
    """`[len(row), len(column)]` of a matrix with contiguous columns; zero outside."""
    at = pointer + row.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(at, mask=(row < rows)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit
def modulation(tokens, weight, bias, n, c, place, part: tl.constexpr, N, C, D, BN: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    """scale (part 0) or shift (part 1) of BN patches at one pixel position: `[BN, BC]` fp32."""
    matrix = weight + (place * 2 + part).to(tl.int64) * C * D
    acc = tl.zeros([BN, BC], tl.float32)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        a, b = block(tokens, n, d, N, D, D), block(matrix, c, d, C, D, D)
        acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee")
    return acc + tl.load(bias + (place * 2 + part) * C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]


@triton.jit
def forward_kernel(
    pixels, tokens, weight, bias, out, N, P, C, D, BN: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr
):
    n, c = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(2) * BC + tl.arange(0, BC)
    place = tl.program_id(1)
    scale = modulation(tokens, weight, bias, n, c, place, 0, N, C, D, BN, BC, BD)
    shift = modulation(tokens, weight, bias, n, c, place, 1, N, C, D, BN, BC, BD)
    x = block(pixels + place * C, n, c, N, C, P * C).to(tl.float32)
    at = out + n.to(tl.int64)[:, None] * (P * C) + place * C + c[None, :]
    tl.store(at, (x * (1 + scale) + shift).to(out.dtype.element_ty), mask=(n < N)[:, None] & (c < C)[None, :])


@triton.jit
def grad_pixels_kernel(
    grad, tokens, weight, bias, grad_pixels, N, P, C, D, BN: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr
):
    n, c = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(2) * BC + tl.arange(0, BC)
    place = tl.program_id(1)
    scale = modulation(tokens, weight, bias, n, c, place, 0, N, C, D, BN, BC, BD)
    g = block(grad + place * C, n, c, N, C, P * C).to(tl.float32)
    at = grad_pixels + n.to(tl.int64)[:, None] * (P * C) + place * C + c[None, :]
    mask = (n < N)[:, None] & (c < C)[None, :]
    tl.store(at, (g * (1 + scale)).to(grad_pixels.dtype.element_ty), mask=mask)


@triton.jit
def grad_tokens_kernel(
    grad, pixels, weight, grad_tokens, N, P, C, D, BN: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr
):
    n, d = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros([BN, BD], tl.float32)
    matrix = weight
    for place in range(0, P):
        for first in range(0, C, BC):
            c = first + tl.arange(0, BC)
            g = block(grad + place * C, n, c, N, C, P * C)
            x = block(pixels + place * C, n, c, N, C, P * C)
            scaled = (g.to(tl.float32) * x.to(tl.float32)).to(g.dtype)
            acc = tl.dot(scaled, block(matrix, c, d, C, D, D), acc, input_precision="ieee")
            acc = tl.dot(g, block(matrix + C * D, c, d, C, D, D), acc, input_precision="ieee")
        matrix += 2 * C * D
    at = grad_tokens + n.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(at, acc.to(grad_tokens.dtype.element_ty), mask=(n < N)[:, None] & (d < D)[None, :])


@triton.jit
def grad_weight_kernel(
    grad,
    pixels,
    tokens,
    grad_weight,
    grad_bias,
    N,
    P,
    C,
    D,
    BN: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
):
    """Gradients of one pixel position's weights: sums over all patches, so no atomics."""
    place = tl.program_id(0)
    c, d = tl.program_id(1) * BC + tl.arange(0, BC), tl.program_id(2) * BD + tl.arange(0, BD)
    acc_scale = tl.zeros([BC, BD], tl.float32)
    acc_shift = tl.zeros([BC, BD], tl.float32)
    sum_scale = tl.zeros([BC], tl.float32)
    sum_shift = tl.zeros([BC], tl.float32)
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN)
        g = block(grad + place * C, n, c, N, C, P * C)
        x = block(pixels + place * C, n, c, N, C, P * C)
        t = block(tokens, n, d, N, D, D)
        scaled = g.to(tl.float32) * x.to(tl.float32)
        sum_scale += tl.sum(scaled, 0)
        sum_shift += tl.sum(g.to(tl.float32), 0)
        acc_scale = tl.dot(tl.trans(scaled.to(g.dtype)), t, acc_scale, input_precision="ieee")
        acc_shift = tl.dot(tl.trans(g), t, acc_shift, input_precision="ieee")
    matrix = grad_weight + (place * 2).to(tl.int64) * C * D
    at, mask = matrix + c[:, None] * D + d[None, :], (c < C)[:, None] & (d < D)[None, :]
    tl.store(at, acc_scale.to(grad_weight.dtype.element_ty), mask=mask)
    tl.store(at + C * D, acc_shift.to(grad_weight.dtype.element_ty), mask=mask)
    first_block = (c < C) & (tl.program_id(2) == 0)
    tl.store(grad_bias + place * 2 * C + c, sum_scale.to(grad_bias.dtype.element_ty), mask=first_block)
    tl.store(grad_bias + (place * 2 + 1) * C + c, sum_shift.to(grad_bias.dtype.element_ty), mask=first_block)


def blocks(channels: int, width: int) -> dict[str, int]:
    """At least 64 rows wherever rows are the held side: the least that wgmma and tcgen05 multiply."""
    return {
        "BN": 64,
        "BC": min(64, max(16, triton.next_power_of_2(channels))),
        "BD": min(64, max(16, triton.next_power_of_2(width))),
    }


def forward(pixels, tokens, weight, bias) -> Tensor:
    pixels, tokens, weight, bias = (t.contiguous() for t in (pixels, tokens, weight, bias))
    (count, places, channels), width = pixels.shape, tokens.shape[1]
    out, size = torch.empty_like(pixels), blocks(channels, width)
    grid = (triton.cdiv(count, size["BN"]), places, triton.cdiv(channels, size["BC"]))
    forward_kernel[grid](
        pixels,
        tokens,
        weight,
        bias,
        out,
        count,
        places,
        channels,
        width,
        **size,
        num_stages=STAGES["forward"],
    )
    return out


def backward(grad, _out, pixels, tokens, weight, bias) -> list[Tensor]:
    """Gradients of pixels, tokens, weight, bias."""
    grad, pixels, tokens, weight, bias = (t.contiguous() for t in (grad, pixels, tokens, weight, bias))
    (count, places, channels), width = pixels.shape, tokens.shape[1]
    size, numbers = blocks(channels, width), (count, places, channels, width)
    grad_pixels, grad_tokens, grad_weight, grad_bias = (
        torch.empty_like(t) for t in (pixels, tokens, weight, bias)
    )
    over_n, over_c, over_d = (
        triton.cdiv(n, size[b]) for n, b in ((count, "BN"), (channels, "BC"), (width, "BD"))
    )
    grad_pixels_kernel[(over_n, places, over_c)](
        grad, tokens, weight, bias, grad_pixels, *numbers, **size, num_stages=STAGES["grad_pixels"]
    )
    grad_tokens_kernel[(over_n, over_d)](
        grad, pixels, weight, grad_tokens, *numbers, **size, num_stages=STAGES["grad_tokens"]
    )
    grad_weight_kernel[(places, over_c, over_d)](
        grad, pixels, tokens, grad_weight, grad_bias, *numbers, **size, num_stages=STAGES["grad_weight"]
    )
    return [grad_pixels, grad_tokens, grad_weight, grad_bias]
