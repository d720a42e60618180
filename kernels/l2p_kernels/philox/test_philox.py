"""Philox against the published vectors and in two implementations; its normal numbers against the formula and by moments."""

import math

import numpy as np
import pytest
import torch

from . import philox4x32, philox_normal
from .reference import COUNTERS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Counter, key and result of `philox4x32 10` in kat_vectors of Random123 1.14 (https://github.com/DEShawResearch/random123).
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def numbers(text):
    return [int(word, 16) for word in text.split()]


def scalar_philox(counter, key):
    """The ten rounds in Python's own integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def triton_words(counters, key):
    import triton
    import triton.language as tl

    from .triton import philox4x32 as rounds

    @triton.jit
    def kernel(counter, key, out, COUNT: tl.constexpr):
        i = tl.arange(0, COUNT)
        c0 = tl.load(counter + 4 * i).to(tl.uint32)
        c1 = tl.load(counter + 4 * i + 1).to(tl.uint32)
        c2 = tl.load(counter + 4 * i + 2).to(tl.uint32)
        c3 = tl.load(counter + 4 * i + 3).to(tl.uint32)
        k0 = tl.load(key + 0 * i).to(tl.uint32)
        k1 = tl.load(key + 0 * i + 1).to(tl.uint32)
        c0, c1, c2, c3 = rounds(c0, c1, c2, c3, k0, k1)
        tl.store(out + 4 * i, c0.to(tl.int64))
        tl.store(out + 4 * i + 1, c1.to(tl.int64))
        tl.store(out + 4 * i + 2, c2.to(tl.int64))
        tl.store(out + 4 * i + 3, c3.to(tl.int64))

    counters = torch.tensor(counters, device=DEVICE)
    out = torch.empty_like(counters)
    kernel.fn.__globals__.update(rounds=rounds, tl=tl)
    kernel[(1,)](counters, torch.tensor(key, device=DEVICE), out, COUNT=len(counters))
    return [tuple(row) for row in out.tolist()]


def numpy_words(counters, key):
    words = philox4x32(tuple(np.array(counters, np.uint64).T), key)
    return [tuple(row) for row in np.stack(words, 1).tolist()]


@pytest.mark.parametrize("words", (numpy_words, triton_words))
@pytest.mark.parametrize("counter, key, result", VECTORS)
def test_published_vectors(words, counter, key, result):
    assert words([numbers(counter)] * 2, numbers(key)) == [tuple(numbers(result))] * 2


@pytest.mark.parametrize("words", (numpy_words, triton_words))
def test_words_of_other_counters_and_keys(words):
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(2**32, (64, 4), generator=generator).tolist()
    for key in torch.randint(2**32, (4, 2), generator=generator).tolist():
        assert words(counters, key) == [scalar_philox(counter, key) for counter in counters]


@pytest.mark.parametrize("impl", ("reference", "triton"))
@pytest.mark.parametrize("seed", (0, 7, 2**63 - 1, 2**31))
def test_numbers_are_box_muller_of_the_words(impl, seed):
    first, stream = 4 * 2**32 - 5, 3  # across a carry into the counter's second word, and no multiple of four
    drawn = philox_normal(torch.empty(3, 7, device=DEVICE), seed, stream, first, impl=impl).flatten().tolist()
    expected = []
    for block in range(first // 4, (first + 21) // 4 + 1):
        words = scalar_philox((block % 2**32, block >> 32, stream, 0), (seed % 2**32, seed >> 32))
        for u, v in (words[:2], words[2:]):
            radius, angle = math.sqrt(-2 * math.log((u + 0.5) / 2**32)), 2 * math.pi * v / 2**32
            expected += [radius * math.cos(angle), radius * math.sin(angle)]
    skip = first % 4
    assert drawn == pytest.approx(expected[skip : skip + 21], abs=3e-6)


def test_triton_and_the_reference_draw_the_same():
    one, other = torch.empty(2, 10_001, device=DEVICE), torch.empty(2, 10_001, device=DEVICE)
    philox_normal(one, 5, 1, 3, impl="triton")
    philox_normal(other, 5, 1, 3, impl="reference")
    assert (one - other).abs().max() <= 2e-6


@pytest.mark.parametrize("impl", ("reference", "triton"))
def test_any_part_is_that_of_the_whole(impl):
    whole = philox_normal(torch.empty(3 * 4096, device=DEVICE), 9, impl=impl)
    for first, count in ((0, 1), (3, 2), (4095, 4098), (7, 4096)):
        part = philox_normal(torch.empty(count, device=DEVICE), 9, 0, first, impl=impl)
        assert torch.equal(part, whole[first : first + count])


def test_numbers_are_white():
    n = 8 * COUNTERS + 2
    x = philox_normal(torch.empty(n), 1).double()
    others = [
        philox_normal(torch.empty(n), *which).double()
        for which in ((2, 0), (1, 1), (1 + 2**32, 0), (1, 0, n))
    ]
    assert abs(x.mean()) < 4 / math.sqrt(n) and abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(x.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)
    for other in [x.roll(lag) for lag in (1, 2, 3, 4, 512)] + others:
        assert abs((x * other).mean()) < 4 / math.sqrt(n)


def test_a_fake_gpu_draws_in_one_launch():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        out = philox_normal(torch.empty(2, 3, 5, device="cuda"), 1, 0, 2)
    assert out.device.type == "cuda" and out.shape == (2, 3, 5)


def test_opcheck():
    from .api import philox_normal_triton

    torch.library.opcheck(
        philox_normal_triton,
        (torch.empty(12, device=DEVICE), 3, 0, 2),
        test_utils=["test_schema", "test_faketensor"],
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((torch.empty(4), -1), r"seed must be 0 to"),
        ((torch.empty(4), 2**63), r"seed must be 0 to"),
        ((torch.empty(4), 0, 0, -1), r"first must be 0 to"),
        ((torch.empty(4).double(), 0), r"contiguous float32; got torch.float64"),
        ((torch.empty(4, 4).T, 0), r"strides \[1, 4\]"),
    ],
)
def test_mistakes_are_explained(arguments, words):
    with pytest.raises(ValueError, match=words):
        philox_normal(*arguments)
