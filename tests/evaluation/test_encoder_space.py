"""The second feature space and its distance, against closed forms and pictures whose fault is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from l2p.evaluation.evaluate import encoder_vectors
from l2p.evaluation.frechet import FeatureStatistics, relative_frechet
from l2p.images import from_uint8
from l2p.landscapes import render_batch
from l2p.teachers import load_teacher


def gathered(features):
    statistics = FeatureStatistics()
    statistics.update(features)
    return statistics


def test_the_relative_distance_of_gaussians_is_their_closed_form_whatever_the_units():
    """N(m, s^2) a feature: ((m - m')^2 + (s - s')^2) / s'^2, the mean over features."""
    real = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = real * torch.tensor([1.0, 2.0, 1.0]) + torch.tensor([0.0, 0.0, 0.5])
    wanted = (0 + 1 + 0.25) / 3
    for units in (torch.ones(3), torch.tensor([1e-3, 1.0, 1e4])):
        found = relative_frechet(gathered(shifted * units), gathered(real * units))
        assert found == pytest.approx(wanted, rel=0.02)
    assert relative_frechet(gathered(real), gathered(real)) == pytest.approx(0, abs=1e-9)


def test_soft_and_pale_pictures_are_far_and_other_renders_are_near():
    look = encoder_vectors(load_teacher("landscapes"), torch.float32)
    first, second = (from_uint8(render_batch(range(i, i + 96), 64, 64)) for i in (0, 1000))
    real = gathered(look(first))
    assert look(first[:2]).shape == (2, 256)
    near = relative_frechet(gathered(look(second)), real)
    soft = relative_frechet(gathered(look(F.avg_pool2d(F.pad(first, (1,) * 4, mode="reflect"), 3, 1))), real)
    pale = relative_frechet(gathered(look(first * 0.8)), real)
    assert 0 < near < 0.85 * min(soft, pale)


def test_a_teacher_without_such_an_encoder_has_no_second_space():
    assert encoder_vectors(SimpleNamespace(name="bare"), torch.float32) is None
