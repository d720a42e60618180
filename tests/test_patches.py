"""Patches: their order, and the way there and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2p.patches import patchify, unpatchify


def test_order_within_a_token_is_row_column_channel():
    p, C = 2, 3
    x = torch.arange(1 * C * 4 * 6).reshape(1, C, 4, 6)
    tokens = patchify(x, p)
    assert tokens.shape == (1, 2, 3, p * p * C)
    for row in range(2):
        for column in range(3):
            expected = [
                x[0, c, row * p + i, column * p + j] for i in range(p) for j in range(p) for c in range(C)
            ]
            assert tokens[0, row, column].tolist() == expected


@settings(max_examples=30, deadline=None)
@given(*[st.integers(1, 4)] * 5)
def test_round_trip(batch, channels, rows, columns, p):
    x = torch.randn(batch, channels, rows * p, columns * p)
    assert torch.equal(unpatchify(patchify(x, p), p), x)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="5 x 4 has no whole patches of 2"):
        patchify(torch.zeros(1, 3, 5, 4), 2)
    with pytest.raises(ValueError, match="10 values"):
        unpatchify(torch.zeros(1, 2, 2, 10), 2)
