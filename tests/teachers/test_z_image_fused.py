"""The blocks as a GPU runs them, on a CPU: diffusers' own numbers, and weights that are still each layer's."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

from l2p.students.weights import read_entries, read_weights, write_weights
from l2p.teachers.z_image_fused import Fused, joined


@pytest.fixture(scope="module")
def blocks():
    torch.manual_seed(0)
    made = [ZImageTransformerBlock(i, 64, 4, 4, 1e-5, True, modulation=i < 2).eval() for i in range(3)]
    for block in made:
        for name, weight in block.named_parameters():
            torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    return made


@torch.no_grad()
@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("masked", (False, True))
def test_blocks_are_diffusers_own(blocks, batch, masked):
    generator = torch.Generator().manual_seed(1)
    x, c = torch.randn(batch, 12, 64, generator=generator), torch.randn(batch, 64, generator=generator)
    rope = torch.polar(torch.ones(batch, 12, 8), torch.randn(batch, 12, 8, generator=generator))
    mask = torch.arange(12) < torch.tensor([12, 7, 9])[:batch, None] if masked else None
    fused = Fused(blocks, c)
    for block in blocks:
        expected = block(x, mask, rope, c if block.modulation else None)
        torch.testing.assert_close(fused(block, x, mask, rope), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            fused(block, x, mask, rope, wanted=5), expected[:, :5], rtol=1e-5, atol=1e-5
        )


def test_joined_weights_stay_each_layer_s_own(tmp_path):
    layers = [torch.nn.Linear(4, rows) for rows in (3, 5)]
    before = [layer.weight.detach().clone() for layer in layers]
    whole = joined(layers, "weight")
    assert torch.equal(whole, torch.cat(before)) and joined(layers, "weight") is whole
    with torch.no_grad():
        layers[1].weight.add_(1)
    assert torch.equal(joined(layers, "weight")[3:], before[1] + 1)
    layers[0].weight.data = torch.zeros(3, 4)  # as moving or casting a module does
    assert torch.equal(joined(layers, "weight"), torch.cat([torch.zeros(3, 4), before[1] + 1]))
    write_weights({str(i): layer.weight.detach() for i, layer in enumerate(layers)}, tmp_path, {})
    written = read_weights(read_entries(tmp_path), "cpu")
    assert all(torch.equal(written[str(i)], layer.weight) for i, layer in enumerate(layers))
