"""The block written out for a CPU against diffusers' own: the same numbers, and no worse rounded."""

from __future__ import annotations

import pytest
import torch

from l2p.teachers import z_image_block
from l2p.teachers.z_image_block import block_forward, suits


@pytest.fixture
def case(monkeypatch):
    """Blocks with weights of their own in every place, and inputs whose tokens no step divides."""
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

    torch.manual_seed(0)
    monkeypatch.setattr(z_image_block, "FROM", 2 * 70)
    blocks = [ZImageTransformerBlock(0, 64, 2, 2, 1e-5, True, modulation=on) for on in (True, False)]
    for parameter in (p for block in blocks for p in block.parameters() if p.ndim == 1):
        parameter.data.uniform_(0.5, 1.5)
    x, c = torch.randn(2, 70, 64), torch.randn(2, 64)
    return blocks, x, torch.polar(torch.ones(1, 70, 16), 3 * torch.randn(1, 70, 16)), c


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt())


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "queries"), [(24, 16), (1000, 100), (150, 100)])
def test_the_block_is_diffusers_own(case, monkeypatch, tokens, queries):
    """In parts of a picture, two pictures at once, and one after the other; each with rotations of its own."""
    monkeypatch.setattr(z_image_block, "TOKENS", tokens)
    monkeypatch.setattr(z_image_block, "QUERIES", queries)
    blocks, x, rope, c = case
    x, c = torch.cat([x, x.flip(0) + 1, x[:1]]), torch.cat([c, c + 1, c[:1]])
    rope = rope.repeat(len(x), 1, 1) * torch.polar(torch.ones(len(x), 1, 1), torch.arange(5.0)[:, None, None])
    for block, time in zip(blocks, (c, None), strict=True):
        assert suits(block, x, None)
        exact = block(x, None, rope, time)
        assert distance(block_forward(block, x, rope, time), exact) < 1e-6
        narrow, theirs = block.bfloat16(), x.bfloat16()
        time = None if time is None else time.bfloat16()
        ours = distance(block_forward(narrow, theirs, rope, time), exact)
        assert ours < 1.1 * distance(narrow(theirs, None, rope, time), exact)


@torch.no_grad()
@pytest.mark.parametrize("queries", [16, 100])
def test_the_first_tokens_alone_are_those_of_the_whole(case, monkeypatch, queries):
    monkeypatch.setattr(z_image_block, "QUERIES", queries)
    blocks, x, rope, c = case
    for block, time in zip(blocks, (c, None), strict=True):
        found = block_forward(block, x, rope, time, wanted=45)
        assert found.shape == (2, 45, 64)
        assert distance(found, block(x, None, rope, time)[:, :45]) < 1e-6


@torch.no_grad()
def test_layers_that_are_not_plain_are_called(case):
    """Whose weight may be of a kind that nothing is joined to, as a rounded one, or only a part of what they do."""
    blocks, x, rope, c = case

    class Adapted(torch.nn.Linear):
        def forward(self, y):
            return super().forward(y) + 1

    adapted = Adapted(64, 64, bias=False)
    adapted.weight = blocks[0].attention.to_k.weight
    plain = block_forward(blocks[0], x, rope, c)
    blocks[0].attention.to_k = adapted
    found = block_forward(blocks[0], x, rope, c)
    assert distance(found, blocks[0](x, None, rope, c)) < 1e-6 < distance(found, plain)


def test_what_it_does_not_do_is_left_to_diffusers(case):
    blocks, x, _, _ = case
    assert not suits(blocks[0], x, None)  # gradients
    with torch.no_grad():
        assert not suits(blocks[0], x, torch.ones(2, 70, dtype=torch.bool))
        assert not suits(blocks[0], x.to("meta"), None)
        assert not suits(blocks[0], x[:1], None)
        blocks[1].compile()
        assert not suits(blocks[1], x, None)
