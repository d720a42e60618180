"""The Frechet distance against the closed form for Gaussians and its invariances."""

import pytest
import torch

from l2p.evaluation.frechet import FeatureStatistics, frechet_distance, gaussian_distance


def _spd(generator: torch.Generator, size: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def _statistics(features: torch.Tensor, batch: int) -> FeatureStatistics:
    statistics = FeatureStatistics()
    for chunk in features.split(batch):
        statistics.update(chunk)
    return statistics


def test_streaming_equals_two_passes_even_far_from_zero():
    features = (
        torch.randn(257, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1 + 1e4
    )
    statistics = _statistics(features, 10)
    torch.testing.assert_close(statistics.mean, features.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(statistics.covariance, torch.cov(features.T), rtol=1e-6, atol=1e-9)
    assert statistics.count == 257


def test_closed_form_of_commuting_gaussians():
    # diagonal covariances commute: d^2 = |m_a - m_b|^2 + sum (s_a - s_b)^2
    s_a, s_b = (
        torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64),
        torch.tensor([0.3, 2.5, 0.5], dtype=torch.float64),
    )
    m_a, m_b = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    expected = 5.0 + float((s_a - s_b).square().sum())
    assert gaussian_distance(m_a, s_a.square().diag(), m_b, s_b.square().diag()) == pytest.approx(
        expected, abs=1e-10
    )


def test_general_covariances_against_the_matrix_square_root():
    generator = torch.Generator().manual_seed(1)
    a, b = _spd(generator, 6), _spd(generator, 6)
    zero = torch.zeros(6, dtype=torch.float64)
    values, vectors = torch.linalg.eig(a @ b)  # the textbook form, through complex numbers
    trace = (values.sqrt()).sum().real
    expected = float(a.trace() + b.trace() - 2 * trace)
    assert gaussian_distance(zero, a, zero, b) == pytest.approx(expected, rel=1e-9)
    assert vectors.shape == (6, 6)


def test_symmetric_invariant_and_zero_for_equal_sets():
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    b = torch.randn(200, 5, generator=generator, dtype=torch.float64) * 1.5 + 0.3
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    plain = frechet_distance(_statistics(a, 64), _statistics(b, 64))
    moved = frechet_distance(_statistics(a @ rotation + 7, 50), _statistics(b @ rotation + 7, 50))
    assert plain == pytest.approx(frechet_distance(_statistics(b, 64), _statistics(a, 64)), rel=1e-9)
    assert plain == pytest.approx(moved, rel=1e-8)
    assert frechet_distance(_statistics(a, 64), _statistics(a[torch.randperm(300)], 37)) < 1e-9


def test_rank_deficient_covariances_stay_finite():
    line = torch.randn(40, 1, dtype=torch.float64) @ torch.ones(1, 8, dtype=torch.float64)
    assert frechet_distance(_statistics(line, 8), _statistics(line + 1, 8)) == pytest.approx(8.0, rel=1e-6)


def test_too_few_features_are_refused():
    statistics = FeatureStatistics()
    with pytest.raises(ValueError, match="no features"):
        _ = statistics.mean
    statistics.update(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="at least 2"):
        _ = statistics.covariance
    with pytest.raises(ValueError, match=r"\[B, d\]"):
        statistics.update(torch.zeros(4))
