"""Growing: white noise stays white, the core sees the same numbers, and the first picture is the small one upsampled."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from l2p import flow
from l2p.errors import UserError
from l2p.images import to_uint8
from l2p.patches import patchify, unpatchify
from l2p.students.build import from_teacher
from l2p.students.grow import grow, grow_lift, spread_pixels
from l2p.students.heads.grown import AROUND, sharpened
from l2p.students.io import load_student, save_student
from l2p.students.tiled_inference import generate_tiled

DETAIL = {"fine_patch": 8, "width": 32, "num_blocks": 1, "head_dim": 16, "tile": 4, "halo": 2}


@pytest.fixture(params=["patch", "linear"])
def small(request, teacher, lift, student_config, randomised):
    config = student_config(request.param)
    config.project_noise = request.param == "patch"
    return randomised(from_teacher(teacher, lift, config, size=(32, 48)), std=0.02).eval()


def pooled(x: torch.Tensor, factor: int) -> torch.Tensor:
    return F.avg_pool2d(x, factor)


@pytest.mark.parametrize("factor", [2, 4])
def test_the_grown_picture_is_the_small_one(small, captions, factor):
    """eps' at 4x against eps = U^T eps' at 1x: block means agree, to rounding and what `sharpened` leaves."""
    eps, conditioning = flow.noise([1, 2], 3, 32 * factor, 48 * factor), captions([5, 9])
    with torch.no_grad():
        expected = small(factor * pooled(eps, factor), torch.ones(2), conditioning)
        found = grow(small, factor, DETAIL)(eps, torch.ones(2), conditioning)
    difference = pooled(found, factor) - expected
    assert found.shape == (2, 3, 32 * factor, 48 * factor)
    assert difference.square().mean().sqrt() < 0.01 * expected.std()
    assert difference[..., 4:-4, 4:-4].abs().max() < 0.05 * expected.std()


def test_the_core_is_given_the_same_numbers(small, captions):
    eps, conditioning = flow.noise([1], 3, 128, 192), captions([5])
    grown = grow(small, 4, DETAIL)
    tokens = patchify(eps, 64)
    with torch.no_grad():
        fine = grown.core(tokens, torch.ones(1), conditioning)[0]
        coarse = small.core(patchify(4 * pooled(eps, 4), 16), torch.ones(1), conditioning)[0]
    torch.testing.assert_close(fine, coarse, rtol=1e-4, atol=1e-4)


def test_the_grown_lift_is_orthonormal_and_couples_the_noise(lift):
    grown = grow_lift(lift, 2)
    identity = torch.eye(64, dtype=torch.float64)
    torch.testing.assert_close(grown.basis.T @ grown.basis, identity, rtol=0, atol=1e-12)
    eps = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    small = lift.noise_to_latent(patchify(2 * pooled(eps, 2), 16))
    torch.testing.assert_close(grown.noise_to_latent(patchify(eps, 32)), small)
    z = torch.randn(1, 2, 2, 64, dtype=torch.float64)
    picture = unpatchify(lift.to_pixels(z), 16).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(unpatchify(grown.to_pixels(z), 32), picture)
    assert grown.patch_size == 32 and grown.k(1.0) == 1.0 and grown.k(0.0) == 2 * lift.scale


def test_white_noise_stays_white():
    eps = flow.noise([3], 3, 1024, 1024)
    small = 4 * pooled(eps, 4)
    assert abs(small.mean()) < 0.02 and abs(small.var() - 1) < 0.03


def test_spread_pixels_is_nearest_upsampling():
    x = torch.randn(2, 3, 8, 12)
    expected = patchify(x.repeat_interleave(3, 2).repeat_interleave(3, 3), 12)
    assert torch.equal(spread_pixels(patchify(x, 4), 4, 3), expected)


def test_sharpened_pictures_keep_their_block_means():
    """On the worst case, white noise; and a flat picture stays flat."""
    x = torch.randn(1, 3, 24, 24)
    for factor in (2, 4, 8):
        large = F.interpolate(sharpened(x, factor), scale_factor=factor, mode="bicubic", align_corners=False)
        assert (pooled(large, factor) - x).square().mean().sqrt() < 0.01
    torch.testing.assert_close(sharpened(torch.full((1, 3, 4, 4), 0.5), 4), torch.full((1, 3, 4, 4), 0.5))


@pytest.mark.parametrize("size", [(120, 72), (64, 64)])
def test_grown_students_paint_in_bands_travel_and_grow_again(small, captions, tmp_path, size, randomised):
    grown = grow(grow(small, 2, DETAIL), 2, DETAIL)
    randomised(grown.head, std=0.02)
    save_student(grown, tmp_path / "student")
    loaded = load_student(tmp_path / "student")
    assert loaded.spec.patch_size == 64 and (loaded.spec.height, loaded.spec.width) == (128, 192)
    noise, conditioning = flow.Noise.of_seeds([3], 3, 128, 128), captions([5])
    expected = to_uint8(grown.sample(noise.rows(0, 128), conditioning)[:, :, : size[0], : size[1]])
    loaded.head.fit_band = lambda *_: loaded.head.unit
    painted = generate_tiled(loaded, noise, conditioning, *size)
    assert abs(painted.astype(int) - expected).max() <= 1 and (painted != expected).mean() < 1e-2


def test_bands_of_a_grown_head_are_those_of_the_whole(small, captions, randomised):
    grown = grow(small, 2, DETAIL)
    randomised(grown.head, std=0.02)
    eps, conditioning = flow.noise([1], 3, 96, 64), captions([5])
    with torch.no_grad():
        whole = grown(eps, torch.ones(1), conditioning)
        for band in (8, 24, 40):
            grown.head.band_height = band
            found = grown(eps, torch.ones(1), conditioning)
            assert (found - whole).square().mean().sqrt() < 1e-6 * whole.square().mean().sqrt()


def test_a_given_draft_replaces_the_inner_heads(small, captions):
    grown, draft = grow(small, 2, DETAIL), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        found = grown(flow.noise([1], 3, 64, 64), torch.ones(1), captions([5]), draft=draft)
    assert (pooled(found, 2) - draft).abs().mean() < 0.01


def test_other_factors_are_one_line(small):
    with pytest.raises(UserError, match="grow.factor is 3, expected 2, 4 or 8"):
        grow(small, 3, DETAIL)


@pytest.mark.parametrize("number", [0, 3, 6])
def test_a_weight_of_one_paints_the_draft_s_neighbour(small, captions, number):
    """Which lies a small pixel further up, left, or down and askew; beyond the edge lies the edge again."""
    grown, draft = grow(small, 2, DETAIL), torch.rand(1, 3, 32, 32)
    eps, given = flow.noise([1], 3, 64, 64), (torch.ones(1), captions([5]))
    with torch.no_grad():
        plain = grown(eps, *given, draft=draft)
        grown.head.conv_out.bias[3 + number] = 1.0
        found = grown(eps, *given, draft=draft)
    row, column = AROUND[number]
    edged = F.pad(plain, (2, 2, 2, 2), mode="replicate")
    torch.testing.assert_close(
        found, edged[:, :, 2 * row : 2 * row + 64, 2 * column : 2 * column + 64], rtol=0, atol=1e-5
    )
