"""Properties that hold for every input, searched for counter-examples."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from .api import patch_attention
from .cases import Case, relative_rms

SETTINGS = settings(max_examples=12, deadline=None, derandomize=True)


@st.composite
def cases(draw):
    return Case(
        batch=draw(st.integers(1, 2)),
        height=draw(st.integers(1, 22)),
        width=draw(st.integers(1, 22)),
        heads=draw(st.integers(1, 2)),
        head_dim=draw(st.sampled_from((16, 20, 32))),
        tile=draw(st.integers(1, 9)),
        halo=draw(st.integers(0, 9)),
        norm=draw(st.booleans()),
        rope=draw(st.booleans()),
    )


@SETTINGS
@given(cases())
def test_windowed_equals_reference(case):
    inputs = case.tensors(torch.float64)
    assert relative_rms(case.run(inputs, "windowed"), case.run(inputs, "reference")) < 1e-12


@SETTINGS
@given(cases(), st.data())
def test_keys_out_of_reach_have_no_influence(case, data):
    """Their gradient is exactly zero, and NaN in them reaches nothing."""
    inputs = case.tensors()
    y, x = data.draw(st.integers(0, case.height - 1)), data.draw(st.integers(0, case.width - 1))
    top, left = y // case.tile * case.tile - case.halo, x // case.tile * case.tile - case.halo
    far = torch.ones(case.height, case.width, dtype=torch.bool)
    far[max(0, top) : top + case.tile + 2 * case.halo, max(0, left) : left + case.tile + 2 * case.halo] = (
        False
    )
    out = case.run(inputs, "windowed")[:, y, x]
    for grad in torch.autograd.grad(out.sum(), (inputs["k"], inputs["v"])):
        assert torch.count_nonzero(grad[:, far]) == 0
    spoiled = {n: t.detach().clone() for n, t in inputs.items()}
    for n in "kv":
        spoiled[n][:, far] = torch.nan
    assert torch.equal(case.run(spoiled, "windowed")[:, y, x], out)


@SETTINGS
@given(st.sampled_from((4, 8)), st.integers(0, 4), st.integers(1, 2), st.integers(0, 2))
def test_translation_by_whole_tiles_away_from_the_border(tile, halo, down, right):
    size = 6 * tile
    q, k, v = torch.randn(
        3, 1, size, size, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    move = (down * tile, right * tile)
    moved = (t.roll(move, (1, 2)) for t in (q, k, v))
    out = patch_attention(q, k, v, tile=tile, halo=halo).roll(move, (1, 2))
    out_moved = patch_attention(*moved, tile=tile, halo=halo)
    inner = slice(4 * tile, 5 * tile)  # two tiles at most from where it was, none of them at the border
    assert relative_rms(out_moved[:, inner, inner], out[:, inner, inner]) < 1e-12


@SETTINGS
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
def test_a_halo_over_the_whole_grid_is_full_attention(height, width, tile):
    q, k, v = torch.randn(
        3, 2, height, width, 2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    full = F.scaled_dot_product_attention(*(t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)))
    out = patch_attention(q, k, v, tile=tile, halo=max(height, width))
    assert relative_rms(out, full.transpose(1, 2).unflatten(1, (height, width))) < 1e-12
