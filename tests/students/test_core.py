"""The batched forward against diffusers' own, sample by sample, and the core that holds it."""

from __future__ import annotations

import pytest
import torch

from l2p.errors import UserError
from l2p.patches import unpatchify
from l2p.students.cores.z_image import ZImageCore
from l2p.teachers.z_image_forward import batched_forward


def diffusers_output(transformer, tokens, t, conditioning):
    images = unpatchify(tokens, 2).unsqueeze(2)
    texts = [e[:n] for e, n in zip(conditioning.embeds, conditioning.lengths.tolist(), strict=True)]
    return torch.stack(transformer(list(images), t, texts, return_dict=False)[0]).squeeze(2)


def batched_output(transformer, tokens, t, conditioning):
    features, c = batched_forward(transformer, tokens, t, conditioning)
    final = next(iter(transformer.all_final_layer.values()))
    return unpatchify(final(features.flatten(1, 2), c=c).unflatten(1, features.shape[1:3]), 2)


@pytest.mark.parametrize("lengths", [[7, 7, 7], [3, 30, 32], [5, 33, 70], [64, 1, 40]])
@pytest.mark.parametrize("grid", [(4, 8), (3, 5), (6, 6), (1, 9)])
def test_equals_diffusers(teacher, lengths, grid, captions):
    """Captions of one padded length and of several; grids with and without padding to 32 tokens."""
    tokens = torch.randn(3, *grid, 64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.35, 1.0])
    conditioning = captions(lengths)
    with torch.no_grad():
        expected = diffusers_output(teacher.transformer, tokens, t, conditioning)
        got = batched_output(teacher.transformer, tokens, t, conditioning)
    assert expected.std() > 0.1  # a transformer that answers zero would prove nothing
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_equals_diffusers_under_bf16_autocast(teacher, captions):
    tokens, t, conditioning = torch.randn(2, 3, 5, 64), torch.tensor([0.2, 0.9]), captions([5, 40])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = diffusers_output(teacher.transformer, tokens, t, conditioning)
        got = batched_output(teacher.transformer, tokens, t, conditioning)
    torch.testing.assert_close(got.float(), expected.float(), atol=0.05, rtol=0.05)


def test_a_sample_does_not_depend_on_its_batch(teacher, captions):
    """Longer captions beside it, more room than its words need, or none: the same features."""
    tokens, t, conditioning = torch.randn(3, 3, 5, 64), torch.tensor([0.1, 0.5, 0.9]), captions([5, 33, 70])
    with torch.no_grad():
        together, _ = batched_forward(teacher.transformer, tokens, t, conditioning)
        for i in range(3):
            alone, _ = batched_forward(
                teacher.transformer, tokens[i : i + 1], t[i : i + 1], conditioning[i : i + 1]
            )
            torch.testing.assert_close(alone, together[i : i + 1], atol=2e-5, rtol=1e-5)


def test_gradients_equal_diffusers(teacher, captions):
    tokens = torch.randn(2, 3, 5, 64, requires_grad=True)
    t, conditioning = torch.tensor([0.2, 0.9]), captions([5, 40])
    expected = torch.autograd.grad(
        diffusers_output(teacher.transformer, tokens, t, conditioning).square().sum(), tokens
    )
    got = torch.autograd.grad(
        batched_output(teacher.transformer, tokens, t, conditioning).square().sum(), tokens
    )
    torch.testing.assert_close(got[0], expected[0], atol=1e-4, rtol=1e-4)


def test_tables_made_in_inference_mode_can_be_trained_with(teacher, captions):
    tokens, t, conditioning = torch.randn(1, 2, 7, 64, requires_grad=True), torch.tensor([0.5]), captions([9])
    with torch.inference_mode():
        batched_forward(teacher.transformer, tokens, t, conditioning)
    batched_forward(teacher.transformer, tokens, t, conditioning)[0].sum().backward()
    assert tokens.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("grid", "lengths", "message"), [((33, 2), [5], "draw smaller"), ((2, 2), [128], "shorten")]
)
def test_beyond_the_known_positions_is_one_clear_line(teacher, grid, lengths, message, captions):
    with pytest.raises(UserError, match=message):
        batched_forward(teacher.transformer, torch.zeros(1, *grid, 64), torch.ones(1), captions(lengths))


def test_core_reads_pixel_patches_and_counts_time_our_way(teacher, captions, randomised):
    core = ZImageCore(ZImageCore.config_of(teacher.transformer.config, {}), 16).eval()
    randomised(core)
    tokens, t, conditioning = torch.randn(2, 3, 5, 768), torch.tensor([0.2, 0.9]), captions([5, 9])
    with torch.no_grad():
        features, c = core(tokens, t, conditioning)
        expected, c_expected = batched_forward(core.transformer, tokens, 1 - t, conditioning)
    assert features.shape == (2, 3, 5, 64) and c.shape == (2, core.time_dim)
    assert torch.equal(features, expected) and torch.equal(c, c_expected)
    assert not any("final_layer" in name for name in core.state_dict())
    with pytest.raises(ValueError, match="64 values"):
        core(torch.randn(2, 3, 5, 64), t, conditioning)


def test_image_conditioned_transformers_are_refused(teacher):
    with pytest.raises(ValueError, match="siglip"):
        ZImageCore.config_of({**teacher.transformer.config, "siglip_feat_dim": 32}, {})
