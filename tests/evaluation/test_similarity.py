"""SSIM, LPIPS, the latent cycle and consistency from afar."""

import pytest
import torch
from skimage.metrics import structural_similarity

from l2p.errors import UserError
from l2p.evaluation import downsample_consistency, latent_cycle_error, lpips_distance, perceptual, ssim
from l2p.images import from_uint8
from l2p.landscapes import render_batch


@pytest.fixture(scope="module")
def renders():
    return from_uint8(render_batch(range(9_200_000, 9_200_004), 64, 64))


def test_ssim_equals_scikit_image(renders):
    noise = torch.randn(renders.shape, generator=torch.Generator().manual_seed(0))
    other = (renders + 0.1 * noise).clamp(-1, 1)
    ours = ssim(other, renders)
    for k in range(len(renders)):
        _, full = structural_similarity(
            other[k].numpy(), renders[k].numpy(), channel_axis=0, data_range=2.0, gaussian_weights=True,
            sigma=1.5, use_sample_covariance=False, full=True,
        )  # fmt: skip
        # torchmetrics counts the edge as well, and mirrors it a pixel later
        assert float(ours[k]) == pytest.approx(full.mean(), abs=0.005)
    assert ssim(renders, renders).sub(1).abs().max() < 1e-5
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(renders[..., :8], renders[..., :8])


def test_lpips_without_its_weights_is_one_clear_line(renders, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="LPIPS needs VGG-16's weights") as caught:
        lpips_distance(renders, renders)
    assert "\n" not in str(caught.value)
    assert not perceptual.backbone_available()
    with pytest.raises(ValueError, match="two equal shapes"):
        lpips_distance(renders, renders[:2])


def test_latent_cycle_finds_the_planted_error_and_only_that(renders):
    def encode(x):
        return torch.nn.functional.avg_pool2d(x, 4)

    z = encode(renders)
    assert latent_cycle_error(renders, z, encode).max() == 0
    off = latent_cycle_error(
        renders * 1.25, z, encode
    )  # a linear encoder: a quarter more is an error of a quarter
    assert off == pytest.approx([0.25] * 4, abs=1e-5)
    invented = renders.clone()
    invented[:, :, 16:32, 16:32] = 1.0  # an object that the latent knows nothing of
    assert latent_cycle_error(invented, z, encode).min() > 0.1
    with pytest.raises(ValueError, match="the encoder gives"):
        latent_cycle_error(renders, z[:, :2], encode)


def test_consistency_is_silent_on_detail_and_exact_on_a_cast(renders):
    check = (torch.arange(64) % 2 * 2.0 - 1)[:, None] * (torch.arange(64) % 2 * 2.0 - 1)
    assert downsample_consistency(renders + 0.2 * check, renders).max() < 1e-7
    assert downsample_consistency(renders + 0.1, renders) == pytest.approx([0.1] * 4, abs=1e-6)
    small = torch.nn.functional.avg_pool2d(renders, 8)
    assert downsample_consistency(renders, small).max() < 1e-6
    moved = renders.clone()
    moved[:, :, 8:16, 8:16] += 0.8  # one of 64 cells
    assert downsample_consistency(moved, renders) == pytest.approx([0.1] * 4, abs=1e-6)
    with pytest.raises(ValueError, match="factor=7"):
        downsample_consistency(renders, renders, 7)
