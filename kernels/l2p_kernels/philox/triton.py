"""Philox4x32-10 and Box-Muller in Triton: four numbers a counter, one counter a lane. See `reference.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # counters a program


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds; uint32 in and out."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def normal(bits_u, bits_v):
    u = bits_u.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # (bits + 1/2) / 2^32
    radius = tl.sqrt(-2.0 * tl.log(u))
    # An eighth of a turn at most from the nearest quarter, exactly; then Taylor's polynomials (2e-8). The library's sine
    # takes a table on the stack for angles that do not occur here.
    quarter = (bits_v + 0x20000000) >> 30
    x = (bits_v - (quarter << 30)).to(tl.int32, bitcast=True).to(
        tl.float32
    ) * 1.4629180792671596e-09  # 2 pi / 2^32
    y = x * x
    sine = x * (1 + y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y * (1 / 362880)))))
    cosine = 1 + y * (-0.5 + y * (1 / 24 + y * (-1 / 720 + y * (1 / 40320 + y * (-1 / 3628800)))))
    odd = (quarter & 1) == 1
    c = tl.where(odd, sine, cosine)
    s = tl.where(odd, cosine, sine)
    c = tl.where((quarter == 1) | (quarter == 2), -c, c)
    s = tl.where((quarter == 2) | (quarter == 3), -s, s)
    return radius * c, radius * s


@triton.jit(do_not_specialize=["seed_low", "seed_high", "stream", "first", "count"])
def fill_kernel(out, seed_low, seed_high, stream, first, count, BLOCK: tl.constexpr):
    """`out [count]`: numbers first .. first + count - 1 of a stream; the words of the key are the bits of two int32."""
    counter = first // 4 + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], tl.uint32)
    words = philox4x32(
        (counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32),
        zero + stream.to(tl.uint32), zero,
        zero + seed_low.to(tl.uint32), zero + seed_high.to(tl.uint32),
    )  # fmt: skip
    a, b = normal(words[0], words[1])
    c, d = normal(words[2], words[3])
    at = 4 * counter - first
    tl.store(out + at, a, mask=(at >= 0) & (at < count))
    tl.store(out + at + 1, b, mask=(at + 1 >= 0) & (at + 1 < count))
    tl.store(out + at + 2, c, mask=(at + 2 >= 0) & (at + 2 < count))
    tl.store(out + at + 3, d, mask=(at + 3 >= 0) & (at + 3 < count))


def fill(out: Tensor, seed: int, stream: int, first: int) -> None:
    count = out.numel()
    counters = -(-(first + count) // 4) - first // 4
    low = seed & 0xFFFFFFFF
    low -= (low >> 31) << 32  # as a signed number, so that every seed is one and the same type
    with torch.cuda.device_of(out):  # which does nothing where there is no CUDA
        fill_kernel[(triton.cdiv(counters, BLOCK),)](out, low, seed >> 32, stream, first, count, BLOCK=BLOCK)
