"""The block written out for a CPU against diffusers' own: the same numbers, and no worse rounded."""

from __future__ import annotations

import pytest
import torch

from l2p.teachers import z_image_block
from l2p.teachers.z_image_block import block_forward, suits


@pytest.fixture
def case(monkeypatch):
    """A block with weights of its own in every place, and inputs whose tokens no step divides."""
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

    torch.manual_seed(0)
    monkeypatch.setattr(z_image_block, "TOKENS", 24)
    monkeypatch.setattr(z_image_block, "QUERIES", 16)
    monkeypatch.setattr(z_image_block, "FROM", 70)
    blocks = [ZImageTransformerBlock(0, 64, 2, 2, 1e-5, True, modulation=on) for on in (True, False)]
    for parameter in (p for block in blocks for p in block.parameters() if p.ndim == 1):
        parameter.data.uniform_(0.5, 1.5)
    x, c = torch.randn(2, 70, 64), torch.randn(2, 64)
    return blocks, x, torch.polar(torch.ones(1, 70, 16), 3 * torch.randn(1, 70, 16)), c


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt())


@torch.no_grad()
def test_the_block_is_diffusers_own(case):
    blocks, x, rope, c = case
    for block, time in zip(blocks, (c, None), strict=True):
        assert suits(block, x, None)
        exact = block(x, None, rope, time)
        assert distance(block_forward(block, x, rope, time), exact) < 1e-6
        narrow, theirs = block.bfloat16(), x.bfloat16()
        time = None if time is None else time.bfloat16()
        ours = distance(block_forward(narrow, theirs, rope, time), exact)
        assert ours < 1.1 * distance(narrow(theirs, None, rope, time), exact)


def test_what_it_does_not_do_is_left_to_diffusers(case):
    blocks, x, _, _ = case
    assert not suits(blocks[0], x, None)  # gradients
    with torch.no_grad():
        assert not suits(blocks[0], x, torch.ones(2, 70, dtype=torch.bool))
        assert not suits(blocks[0], x.to("meta"), None)
        assert not suits(blocks[0], x[:, :69], None)
        blocks[1].compile()
        assert not suits(blocks[1], x, None)
