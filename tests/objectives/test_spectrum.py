"""Amplitudes of small windows: what a blur loses and what a wrong pattern adds, whatever its phase."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from l2p.objectives.energy import energy_distance
from l2p.objectives.spectrum import SpectrumObjective, spectrum_distance


def waves(period: float, axis: int, phase: float = 0.0) -> torch.Tensor:
    """A picture [1, 3, 64, 64] of waves of amplitude 0.2 along one axis."""
    places = torch.arange(64).float().view((-1, 1) if axis == 2 else (1, -1))
    return (0.2 * torch.cos(2 * torch.pi * places / period + phase)).expand(1, 3, 64, 64).contiguous()


def test_a_moved_pattern_is_the_same_and_a_turned_or_shorter_one_is_not():
    target = waves(4, axis=2)
    moved, turned, shorter = waves(4, 2, phase=1.0), waves(4, axis=3), waves(2.5, axis=2)
    near, *far, flat = (float(spectrum_distance(x, target)) for x in (moved, turned, shorter, 0 * target))
    assert near < 0.02 * flat
    assert min(far) > 1.7 * flat  # a wrong pattern is worse than none
    energies = [float(energy_distance(x, target)) for x in (turned, 0 * target)]
    assert energies[0] < 0.02 * energies[1]  # which the amount alone does not tell


def test_noise_has_amplitudes_of_its_deviation_and_slow_changes_none():
    noise = 0.1 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    flat = torch.zeros_like(noise)
    # mean of |z| of a complex normal number of power 1 is sqrt(pi) / 2
    assert float(spectrum_distance(noise, flat)) == pytest.approx(0.1 * torch.pi**0.5 / 2, rel=0.06)
    cast = torch.full_like(noise, 0.5)
    assert float(spectrum_distance(cast, flat)) < 1e-4


def test_gradient_is_finite_at_equality_and_in_bf16_regions():
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    context = SimpleNamespace(picture=x, batch=SimpleNamespace(images=torch.zeros(1, 3, 32, 32)))
    with torch.autocast("cpu", torch.bfloat16):
        (term,) = SpectrumObjective(teacher=None, lift=None, window=8)(context).values()
    term.backward()
    assert float(term.detach()) == 0 and term.dtype == torch.float32 and bool(torch.isfinite(x.grad).all())
