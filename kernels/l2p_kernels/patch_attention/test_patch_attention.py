"""The windowed path against the fp64 reference, and the reference against SDPA."""

import pytest
import torch
import torch.nn.functional as F

from . import flex
from .api import patch_attention
from .cases import Case, errors_against_reference, relative_rms
from .reference import reach
from .windows import runs

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

CASES = [
    Case(1, 7, 13, tile=4, halo=1),
    Case(3, 7, 13, tile=4, halo=0, norm=True),
    Case(1, 17, 64, tile=8, halo=4, norm=True, rope=True),
    Case(3, 33, 9, tile=8, halo=4, rope=True),
    Case(1, 33, 9, tile=16, halo=8, norm=True, rope=True),
    Case(1, 24, 40, tile=16, halo=1, norm=True),
    Case(1, 19, 21, tile=4, halo=8, rope=True),
    Case(1, 5, 3, tile=8, halo=4, head_dim=16, norm=True, rope=True),
    Case(1, 1, 50, tile=4, halo=4, head_dim=48, heads=1, rope=True),
    Case(1, 12, 12, tile=5, halo=3, head_dim=256, heads=1, norm=True),
]


@pytest.fixture
def poisoned():
    """Fills uninitialised memory with NaN, so that anything left unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_windowed_matches_the_fp64_reference(case, dtype, poisoned):
    errors = errors_against_reference(case, "windowed", dtype)
    assert max(errors.values()) <= TOLERANCE[dtype], errors


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "case",
    (Case(1, 7, 13, tile=4, halo=1), Case(2, 17, 12, head_dim=64, norm=True, rope=True)),
    ids=str,
)
def test_flex_forward_matches_the_fp64_reference(case):
    """Forward only: FlexAttention has no gradient on a CPU."""
    inputs = {name: x.detach() for name, x in case.tensors().items()}
    exact = case.run({name: x.double() for name, x in inputs.items()}, "reference")
    assert relative_rms(case.run(inputs, "flex"), exact) <= 1e-5


@pytest.mark.parametrize(
    "sizes", ((24, 24, 8, 4), (17, 9, 4, 1), (5, 7, 8, 9), (21, 30, 8, 0), (19, 20, 4, 6))
)
def test_the_block_mask_of_flex_is_the_specification(sizes):
    """Its lists are read by the GPU's kernels alone: here they are written out densely, by queries and by keys."""
    height, width, tile, halo = sizes
    mask = flex.block_mask(height, width, tile, halo, torch.device("cpu"))
    place = torch.arange(height * width).view(1, height, width, 1, 1)
    queries = flex.tile_major(place + 1, tile, 0).flatten() - 1  # -1 outside the grid
    keys = flex.tile_major(place + 1, tile, flex.origin(tile, halo)).flatten() - 1
    assert mask.seq_lengths == (len(queries), len(keys))
    size, seen = (
        tile * tile,
        mask.mask_mod(0, 0, torch.arange(len(queries))[:, None], torch.arange(len(keys))),
    )
    for lists, swapped in (("kv", False), ("q", True)):
        dense = torch.zeros_like(seen)
        for kind in ("", "full_"):
            counts, numbers = (getattr(mask, f"{kind}{lists}_{x}")[0, 0] for x in ("num_blocks", "indices"))
            for row, count in enumerate(counts):
                for column in numbers[row, :count]:
                    query, key = (column, row) if swapped else (row, column)
                    at = slice(query * size, (query + 1) * size), slice(key * size, (key + 1) * size)
                    assert not dense[at].any()
                    dense[at] = True if kind else seen[at]
        inside = dense[queries >= 0][:, keys >= 0]
        assert not dense[queries >= 0][:, keys < 0].any()
        wanted = reach(height, tile, halo)[:, None, :, None] & reach(width, tile, halo)[None, :, None, :]
        wanted = wanted.reshape(height * width, -1)[queries[queries >= 0]][:, keys[keys >= 0]]
        assert torch.equal(inside, wanted)


def test_many_bands_give_the_same_result(monkeypatch, poisoned):
    from . import windowed

    monkeypatch.setattr(windowed, "BAND_BYTES", 1)  # one row of tiles at a time
    errors = errors_against_reference(Case(2, 33, 20, norm=True, rope=True), "windowed", torch.float32)
    assert max(errors.values()) <= 1e-5, errors


def test_reference_is_full_attention_where_the_halo_covers_the_grid():
    case = Case(2, 9, 11, tile=4, halo=11)
    inputs = case.tensors(torch.float64)
    full = F.scaled_dot_product_attention(*(inputs[n].flatten(1, 2).transpose(1, 2) for n in "qkv"))
    for impl in ("reference", "windowed"):
        assert relative_rms(case.run(inputs, impl), full.transpose(1, 2).unflatten(1, (9, 11))) < 1e-12


def test_reach_is_what_the_specification_says():
    """The keys that move a query's output are exactly those within its tile's halo."""
    case = Case(1, 13, 10, tile=4, halo=2, heads=1, head_dim=16)
    inputs = case.tensors(torch.float64)
    for y, x in ((0, 0), (5, 9), (12, 4), (7, 7)):
        for impl in ("reference", "windowed"):
            (grad,) = torch.autograd.grad(case.run(inputs, impl)[0, y, x].sum(), inputs["v"])
            seen = grad.abs().sum((0, 3, 4)) > 0
            wanted = torch.zeros(13, 10, dtype=torch.bool)
            i, j = y // 4, x // 4
            wanted[max(0, i * 4 - 2) : (i + 1) * 4 + 2, max(0, j * 4 - 2) : (j + 1) * 4 + 2] = True
            assert torch.equal(seen, wanted)


def test_runs_cover_an_axis_once():
    for n in range(1, 40):
        for tile in (1, 3, 4, 8):
            for halo in (0, 1, 4, 9):
                found = runs(n, tile, halo)
                for run in found:
                    for i in range(run.count):
                        part = run.slice(i, i + 1)
                        for query in (part.start, part.stop - 1):
                            start = query // tile * tile
                            assert part.key_start == max(0, start - halo)
                            assert part.key_stop == min(n, start + tile + halo)
                assert [run.start for run in found] + [n] == [0] + [run.stop for run in found]


def test_strided_inputs():
    case = Case(1, 10, 12, norm=True, rope=True)
    inputs = case.tensors()
    packed = torch.stack([inputs[n].detach() for n in "qkv"], dim=4)  # the layout of a fused qkv projection
    views = inputs | dict(zip("qkv", packed.unbind(4), strict=True))
    assert not views["q"].is_contiguous()
    assert torch.equal(case.run(views, "windowed"), case.run(inputs, "windowed"))


def test_autocast_takes_mixed_dtypes():
    case = Case(2, 10, 12, norm=True, rope=True)
    inputs = case.tensors()
    mixed = inputs | {"k": inputs["k"].bfloat16()}
    exact = case.run(inputs, "reference")
    with torch.autocast("cpu", torch.bfloat16):
        for impl in ("windowed", "reference"):
            out = case.run(mixed, impl)
            assert out.dtype == torch.float32
            assert relative_rms(out, exact) < 1.5e-2
        out.sum().backward()
    assert inputs["q"].grad.dtype == torch.float32


def _call(**changes):
    q = torch.randn(1, 8, 8, 2, 16)
    return patch_attention(**({"q": q, "k": q, "v": q} | changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"q": torch.randn(8, 8, 2, 16)}, r"q must be \[B, H, W, heads, head_dim\].*\[8, 8, 2, 16\]"),
        ({"q": torch.randn(1, 0, 8, 2, 16)}, "no empty dimension"),
        ({"k": torch.randn(1, 8, 9, 2, 16)}, r"k must be \[1, 8, 8, 2, 16\].*got \[1, 8, 9, 2, 16\]"),
        ({"v": torch.randn(1, 8, 8, 2, 16).half()}, "v must have q's dtype torch.float32; got torch.float16"),
        ({"k": torch.randn(1, 8, 8, 2, 16, device="meta")}, "k must be on q's device cpu; got meta"),
        ({"q": torch.zeros(1, 8, 8, 2, 16, dtype=torch.int32)}, "fp32, fp16, bf16 or fp64; got torch.int32"),
        ({n: torch.randn(1, 4, 4, 2, 8) for n in "qkv"}, "head_dim must lie in 16..256; got 8"),
        ({"tile": 0}, "tile=0"),
        ({"halo": -1}, "halo=-1"),
        ({"q_norm": torch.ones(8)}, r"q_norm must be \[16\].*got \[8\]"),
        ({"rope": (torch.zeros(8, 4), torch.zeros(8, 8))}, r"rope columns must be \[8, 4\].*got \[8, 8\]"),
        ({"rope": (torch.zeros(8, 4), torch.zeros(8, 4, requires_grad=True))}, "must not require a gradient"),
        ({"impl": "fast"}, "impl must be one of .*'fast'"),
    ],
)
def test_mistakes_are_explained(changes, words):
    with pytest.raises(ValueError, match=words):
        _call(**changes)
