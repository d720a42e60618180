"""Tiles cover everything, and their weights add up to one."""

from __future__ import annotations

import pytest
import torch

from l2p.decoders.tiles import ramps, spans


@pytest.mark.parametrize(
    "size, tile, overlap", [(8, 8, 2), (9, 8, 2), (9, 5, 2), (40, 7, 2), (6, 5, 4), (1, 5, 2)]
)
def test_tiles_cover_and_weights_add_up(size, tile, overlap):
    places = spans(size, tile, overlap)
    assert places[0][0] == 0 and places[-1][1] == size
    assert {end - start for start, end in places} == {min(tile, size)}
    assert all(a[1] - b[0] >= overlap for a, b in zip(places, places[1:], strict=False))
    total = torch.zeros(size * 3)
    for (start, end), weight in zip(places, ramps(places, 3), strict=True):
        assert weight.min() > 0
        total[start * 3 : end * 3] += weight
    torch.testing.assert_close(total, torch.ones(size * 3))
