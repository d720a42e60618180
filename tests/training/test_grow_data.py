"""What growing trains on: noise that belongs to a picture, sizes, and drafts with a small student's faults."""

from __future__ import annotations

import pytest
import torch

from l2p.errors import UserError
from l2p.patches import patchify
from l2p.teachers import load_teacher
from l2p.training import grow_data


def test_noise_with_latents_is_theirs_in_the_span_and_as_white_outside():
    basis = torch.linalg.qr(torch.randn(192, 16, dtype=torch.float64))[0]
    noise, latents = (
        torch.randn(2, 3, 16, 24, dtype=torch.float64),
        torch.randn(2, 2, 3, 16, dtype=torch.float64),
    )
    mixed = patchify(grow_data.with_latents(noise, latents, basis, 8), 8)
    torch.testing.assert_close(mixed @ basis, latents)
    outside = torch.eye(192, dtype=torch.float64) - basis @ basis.T
    torch.testing.assert_close(mixed @ outside, patchify(noise, 8) @ outside)


def test_inversion_leads_back(tiny_pipeline):
    """The teacher's own steps from the noise that was found end near the latents it was found from."""
    teacher = load_teacher(tiny_pipeline)
    images = torch.rand(1, 3, 32, 32) - 0.5
    words = teacher.encode_prompts(["a lake"])
    z = teacher.encode(images)
    back = teacher.sample(grow_data.invert(teacher, images, words, 60), words, 60)
    assert (back - z).abs().mean() < 0.05 * z.abs().mean()


def test_patch_errors_are_planes_that_end_at_the_borders():
    errors = grow_data.patch_errors((64, 3, 40, 64), 16, torch.Generator().manual_seed(0))
    assert errors.shape == (64, 3, 40, 64)
    for dim in (2, 3):
        bends = errors.diff(n=2, dim=dim).abs().amax((0, 1, 5 - dim))
        flat = torch.tensor([16 not in range(i % 16 + 1, i % 16 + 3) for i in range(len(bends))])
        assert bends[flat].max() < 1e-4 and bends[~flat].min() > 0.1
    size = errors.square().mean((1, 2, 3)).sqrt()
    assert size.square().mean().item() == pytest.approx(4 / 3, rel=0.2)  # twice an even number, squared
    assert size.min() < 0.2 and size.max() > 1.5


def test_drafts_have_patch_errors_only_where_they_are_asked_for():
    small = torch.rand(1, 3, 32, 32)
    drafts = [
        grow_data.soften(
            small, grow_data.GrowPictures(noise=0.0, patch_steps=steps), 16, torch.Generator().manual_seed(3)
        )
        for steps in (0.0, 0.1)
    ]
    inside = (drafts[1] - drafts[0]).diff(n=2, dim=2)[:, :, :14]
    assert inside.abs().max() < 1e-5 < (drafts[1] - drafts[0]).abs().max()


@pytest.mark.parametrize("sizes", [[], [[512]], [[100, 512]], [[0, 8]]])
def test_sizes_that_are_none_are_one_line(sizes):
    with pytest.raises(UserError, match="pictures.sizes"):
        grow_data.check_sizes(sizes)
