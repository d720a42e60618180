"""Kernel distance, precision and recall, and the bootstrap, against closed forms and known scatter."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torchmetrics.image.kid import poly_mmd

from l2p.evaluation import bootstrap_interval, kernel_distance, precision_recall, wilson_interval
from l2p.evaluation.kid import kernel_interval


def _features(count: int, seed: int, size: int = 16) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kernel_distance_of_constant_sets_in_closed_form():
    a, b = torch.full((5, 4), 1.0), torch.full((7, 4), 2.0)
    k = {product: (product + 1) ** 3 for product in (1, 2, 4)}  # x . y / d of 1 1, 1 2 and 2 2
    assert kernel_distance(a, b) == pytest.approx(k[1] + k[4] - 2 * k[2])


def test_kernel_distance_equals_torchmetrics_and_is_unbiased():
    a, b = _features(60, 0), _features(60, 1) * 1.3 + 0.2
    assert kernel_distance(a, b) == pytest.approx(float(poly_mmd(a, b)), rel=1e-9)
    same = [kernel_distance(_features(40, 2 * k), _features(40, 2 * k + 1)) for k in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(60) and min(same) < 0 < kernel_distance(a, b)
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(a[:1], b)
    with pytest.raises(ValueError, match=r"\[N, d\]"):
        kernel_distance(a, b[:, :3])


def test_precision_and_recall_of_planted_modes():
    real = torch.cat([_features(50, 0), _features(50, 1) + 100])
    alike = torch.cat([_features(50, 2), _features(50, 3) + 100])
    equal = precision_recall(real, real)
    assert equal.precision == equal.recall == 1
    fair = precision_recall(alike, real)
    lost = precision_recall(alike[:50], real)  # one of two modes is missing
    assert lost.precision == pytest.approx(fair.precision, abs=0.1) and lost.recall <= 0.5 < fair.recall
    strange = torch.cat([alike, _features(100, 4) - 100])  # half of the pictures are like none
    assert precision_recall(strange, real).precision <= 0.5
    assert precision_recall(strange, real).recall == fair.recall
    far = precision_recall(real + 1000, real)
    assert far.precision == far.recall == 0
    with pytest.raises(ValueError, match="k=3"):
        precision_recall(real[:3], real)


def test_precision_on_a_line_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0]])  # with k = 1 their balls reach 1, 1 and 2
    drawn = torch.tensor([[-0.9], [-1.1], [4.9], [5.1]])
    assert precision_recall(drawn, real, k=1).precision == 0.5


def test_interval_of_a_mean_is_the_textbook_one_and_repeats():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(lambda chosen: values[chosen].mean(), 400, resamples=1000)
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)
    again = bootstrap_interval(lambda chosen: values[chosen].mean(), 400, resamples=1000)
    assert (low, high) == again


def test_interval_covers_the_scatter_of_a_biased_figure():
    # the distance of an estimated mean from the truth is biased upwards, and more so where pictures repeat
    def distance(features: np.ndarray) -> float:
        return float(np.square(features.mean(0)).sum())

    sets = [_features(50, k, 8).numpy() for k in range(60)]
    middle = np.mean([distance(features) for features in sets])
    inside = 0
    for features in sets:
        low, high = bootstrap_interval(lambda chosen, f=features: distance(f[chosen]), 50, resamples=100)
        inside += low <= middle <= high
    assert inside >= 48  # of 60, 95 % of which are 57
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_interval(lambda chosen: 0.0, 1)
    with pytest.raises(ValueError, match="confidence=1"):
        bootstrap_interval(lambda chosen: 0.0, 5, confidence=1)


def test_kernel_interval_holds_the_figure_and_narrows():
    b = _features(300, 9)
    widths = []
    for count in (40, 300):
        a = _features(count, 8) + 0.2
        low, high = kernel_interval(a, b)
        assert low < kernel_distance(a, b) < high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]
    low, high = kernel_interval(_features(3, 1), b)  # where some sets hold one picture only
    assert np.isfinite([low, high]).all()


def test_wilson_equals_scipy():
    for hits, count in ((0, 10), (7, 10), (10, 10), (930, 1000)):
        theirs = binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson_interval(hits, count) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert wilson_interval(0, 0) == (0, 1)
