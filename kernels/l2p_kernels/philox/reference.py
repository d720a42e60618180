"""Philox4x32-10 in NumPy's integers and Box-Muller in torch; the path of every device without Triton.

Philox: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). Box-Muller: the two normal
numbers `sqrt(-2 ln u) cos(2 pi v)` and `sqrt(-2 ln u) sin(2 pi v)` of two uniform ones.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
ROUNDS = 10
MASK = 0xFFFFFFFF
COUNTERS = 1 << 13  # at a time: six arrays of so many words of 64 bits stay in a core's cache

Words = NDArray[np.uint64]  # values below 2^32


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, ...]:
    """Four words of 32 bits for each counter of four words and a key of two."""
    c0, c1, c2, c3 = (np.array(words, np.uint64) for words in counter)
    k0, k1 = key
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    for _ in range(ROUNDS):
        np.multiply(c0, MULTIPLIERS[0], out=p0)
        np.multiply(c2, MULTIPLIERS[1], out=p1)
        for out, product, other, k in ((c0, p1, c1, k0), (c2, p0, c3, k1)):
            np.right_shift(product, 32, out=out)
            out ^= other
            out ^= k
            out &= MASK  # `other` is a whole product, of which the low half counts
        c1, p1, c3, p0 = p1, c1, p0, c3
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1 & MASK, c2, c3 & MASK


def normal(bits_u: Words, bits_v: Words) -> tuple[Tensor, Tensor]:
    """Two normal float32 numbers of two words each: `u = (bits + 1/2) / 2^32` is never 0; |number| <= 6.77."""
    u, v = (torch.from_numpy(bits.astype(np.float32)) for bits in (bits_u, bits_v))
    radius = u.mul_(2.0**-32).add_(2.0**-33).log_().mul_(-2).sqrt_()
    angle = v.mul_(2 * math.pi * 2.0**-32)
    return angle.cos().mul_(radius), angle.sin_().mul_(radius)


def philox_normal_reference(out: Tensor, seed: int, stream: int, first: int) -> None:
    """Fills `out [n]` with the numbers first .. first + n - 1 of a stream; see :func:`.api.philox_normal`."""
    filled = out if out.device.type == "cpu" else torch.empty(out.shape)
    stop = first + len(out)
    for start in range(first // 4, -(-stop // 4), COUNTERS):
        block = np.arange(start, min(start + COUNTERS, -(-stop // 4)), dtype=np.uint64)
        zero = np.zeros_like(block)
        words = philox4x32((block & MASK, block >> 32, zero + stream, zero), (seed & MASK, seed >> 32))
        drawn = torch.empty(len(block), 4)
        for i in (0, 2):
            drawn[:, i], drawn[:, i + 1] = normal(words[i], words[i + 1])
        low, high = max(first, 4 * start), min(stop, 4 * (start + len(block)))
        filled[low - first : high - first] = drawn.view(-1)[low - 4 * start : high - 4 * start]
    if filled is not out:
        out.copy_(filled)
