"""Spectra of white noise, of a known blur and of a planted pattern; detail that only native crops show."""

import math

import pytest
import torch
from torch.nn import functional as F

from l2p.evaluation import (
    FeatureStatistics,
    frechet_distance,
    grid_share,
    high_frequency_energy,
    native_crops,
    patch_frechet,
    radial_power_spectrum,
)
from l2p.evaluation.judge import load_judge
from l2p.images import from_uint8
from l2p.landscapes import render_batch


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    place = torch.arange(-8, 9).double()
    taps = torch.exp(-place.square() / (2 * sigma**2))
    taps = (taps / taps.sum()).to(images)
    kernel = torch.outer(taps, taps).expand(images.shape[1], 1, 17, 17)
    return F.conv2d(F.pad(images, (8, 8, 8, 8), mode="reflect"), kernel, groups=images.shape[1])


def test_white_noise_is_flat_at_its_variance():
    frequencies, power = radial_power_spectrum(0.3 * _noise(8, 3, 96, 128), bins=16)
    assert frequencies[0] == pytest.approx(1 / 64) and frequencies[-1] == pytest.approx(31 / 64)
    assert power.mean(0)[1:] == pytest.approx([0.09] * 15, rel=0.06)
    share = 1 - math.pi / 16
    assert high_frequency_energy(0.3 * _noise(8, 3, 96, 128)).mean() == pytest.approx(0.09 * share, rel=0.02)
    with pytest.raises(ValueError, match="cutoff"):
        high_frequency_energy(torch.zeros(1, 3, 16, 16), 0.7)


def test_a_known_blur_has_its_known_spectrum():
    clean = _noise(8, 3, 128, 128)
    frequencies, before = radial_power_spectrum(clean, 16)
    after = radial_power_spectrum(_blur(clean, 1.0), 16)[1]
    ratio = (after.mean(0) / before.mean(0))[1:10]
    expected = torch.exp(-4 * math.pi**2 * frequencies[1:10].square())  # |Gaussian's transform|^2
    assert ratio.log() == pytest.approx(expected.log(), abs=0.25)
    assert (high_frequency_energy(_blur(clean, 1.0)) < 0.05 * high_frequency_energy(clean)).all()
    level = radial_power_spectrum(torch.full((1, 3, 32, 32), 0.4), 8)[1]
    assert level.abs().max() < 1e-12


def test_a_wave_stands_at_its_frequency():
    wave = torch.cos(2 * math.pi * 0.2 * torch.arange(100)).expand(1, 3, 100, 100)
    frequencies, power = radial_power_spectrum(wave, 20)
    assert frequencies[power[0].argmax()] == pytest.approx(0.2, abs=0.0251)


@pytest.mark.parametrize("period", [4, 12, 16])
def test_a_pattern_that_repeats_with_the_patch_has_its_share(period):
    s, size = 0.1, 12 * period
    noise = s * _noise(12, 3, size, size)
    # a pattern of four pixels is beyond what the window of five evens out but for a fifth of its amplitude
    pattern = _noise(3, period, period, seed=1)
    pattern = (pattern - F.avg_pool2d(pattern.repeat(1, 3, 3)[None], 5, 1, 2)[0, :, period : 2 * period,
                                      period : 2 * period])  # fmt: skip
    for a in (0.03, 0.1):
        planted = noise + a * pattern.repeat(1, 12, 12)
        expected = a**2 * pattern.square().mean()
        assert grid_share(planted, period).mean() == pytest.approx(expected / (expected + s**2), rel=0.25)
        assert grid_share(planted, period + 1).mean().abs() < 0.01
    assert grid_share(noise, period).mean().abs() < 0.003
    assert grid_share(torch.zeros(1, 3, 64, 64)).abs().max() == 0
    with pytest.raises(ValueError, match="4 periods"):
        grid_share(noise[..., : 3 * period, :], period)


def test_native_crops_see_a_blur_that_the_judge_does_not():
    judge = load_judge()
    clean = from_uint8(render_batch(range(9_300_000, 9_300_012), 512, 512))
    soft = _blur(clean, 1.2)
    whole = FeatureStatistics(), FeatureStatistics()
    for statistics, pictures in zip(whole, (soft, clean), strict=True):
        statistics.update(judge.features(pictures))
    assert patch_frechet(clean, clean, judge.features) < 1e-6
    assert patch_frechet(soft, clean, judge.features) > 4 * frechet_distance(*whole)


def test_crops_are_at_the_same_places_whatever_the_batch():
    pictures = _noise(4, 3, 40, 48)
    whole = native_crops(pictures, 16, 2, seed=5)
    parts = [native_crops(pictures[:1], 16, 2, 5), native_crops(pictures[1:], 16, 2, 5, first=1)]
    assert torch.equal(whole, torch.cat(parts)) and whole.shape == (8, 3, 16, 16)
    assert not torch.equal(whole, native_crops(pictures, 16, 2, seed=6))
    with pytest.raises(ValueError, match="do not fit"):
        native_crops(pictures, 64)
