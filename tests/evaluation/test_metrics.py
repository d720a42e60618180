"""PSNR, seams, attributes and latency against independent truths, planted defects and null cases."""

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from l2p.evaluation import latency
from l2p.evaluation.attributes import AttributeScore, named_labels
from l2p.evaluation.detail import detail_energy
from l2p.evaluation.psnr_ssim import MAX_PSNR, psnr
from l2p.evaluation.seams import seam_index, seam_ratio
from l2p.landscapes import ATTRIBUTES


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_equals_torchmetrics_for_each_picture():
    a = _noise(3, 3, 9, 14).clamp(-1, 1)
    b = (a + 0.1 * _noise(3, 3, 9, 14, seed=1)).clamp(-1, 1)
    ours = psnr(a, b)
    for k in range(3):
        theirs = peak_signal_noise_ratio(a[k : k + 1], b[k : k + 1], data_range=(-1.0, 1.0))
        assert float(ours[k]) == pytest.approx(float(theirs), abs=1e-3)


def test_psnr_closed_form_clamp_and_ceiling():
    a = torch.zeros(1, 3, 4, 4)
    assert float(psnr(a, a + 0.2)) == pytest.approx(20.0, abs=1e-5)  # 10 log10(4 / 0.04)
    assert float(psnr(a + 1, a + 5)) == MAX_PSNR  # both show as white
    with pytest.raises(ValueError, match="two equal shapes"):
        psnr(a, a[..., :3])


@pytest.mark.parametrize("period", [4, 8, 16])
def test_planted_seam_of_known_contrast(period):
    # white noise of deviation s has steps of energy 2 s^2; offsets of +-c between patches add (2 c)^2 at a border
    # with another sign across it, so the index is 1 + 4 c^2 / (2 s^2)
    s, c, size = 0.1, 0.05, 128
    board = (torch.arange(size) // period) % 2 * 2.0 - 1
    images = s * _noise(6, 3, size, size) + c * board[None, None, :, None] * board[None, None, None, :]
    assert seam_index(images, period).mean() == pytest.approx(1 + 4 * c**2 / (2 * s**2), rel=0.05)


def test_silent_on_clean_pictures_and_other_periods():
    noise = 0.1 * _noise(8, 3, 96, 96)
    assert (seam_index(noise, 16) - 1).abs().max() < 0.12
    ramp = torch.linspace(-1, 1, 80).expand(1, 3, 70, 80)
    assert float(seam_index(ramp, 16)) == pytest.approx(
        1, abs=0.1
    )  # the mean over both axes of an even slope
    assert float(seam_index(torch.full((1, 3, 64, 64), 0.3), 16)) == pytest.approx(1)
    board = 0.05 * ((torch.arange(96) // 16) % 2 * 2.0 - 1)[None, None, None, :]
    shifted = torch.roll(noise + board, 5, 3)[..., 16:]  # seams, but not on the borders asked about
    assert float(seam_index(shifted, 16).mean()) < 1.05


def test_a_seam_in_one_axis_or_one_corner_is_seen():
    images = 0.05 * _noise(1, 3, 64, 64)
    down = images.clone()
    down[..., 32:, :] += 0.4
    assert float(seam_index(down, 16)) > 3
    assert float(seam_index(down.transpose(2, 3), 16)) == pytest.approx(float(seam_index(down, 16)), rel=1e-6)


def test_seam_ratio_and_bad_arguments():
    assert seam_ratio(torch.tensor([1.2, 1.3]), torch.tensor([1.24, 1.26])) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no border"):
        seam_index(torch.zeros(1, 3, 16, 16), 16)
    with pytest.raises(ValueError, match="patch_size=1"):
        seam_index(torch.zeros(1, 3, 16, 16), 1)


def test_detail_energy_closed_form_and_order():
    # white noise of variance s^2 has a Laplacian of variance (4 * 1 + 16) s^2; a slope has none
    noise = 0.1 * _noise(2, 3, 128, 128)
    assert detail_energy(noise).mean() == pytest.approx(20 * 0.01, rel=0.02)
    slope = torch.linspace(-1, 1, 32, dtype=torch.float64).expand(1, 3, 32, 32)
    assert float(detail_energy(slope)) == pytest.approx(0, abs=1e-12)
    soft = torch.nn.functional.avg_pool2d(noise, 3, 1)
    assert (detail_energy(soft) < 0.2 * detail_energy(noise)).all()
    assert float(detail_energy(0.5 * slope.square())) == pytest.approx(float((2 / 31) ** 4), rel=1e-6)
    with pytest.raises(ValueError, match="at least 3 x 3"):
        detail_energy(torch.zeros(1, 3, 2, 8))


def test_only_named_attributes_are_scored():
    labels = named_labels(["a small house by a lake at night", "a wide meadow"])
    said = dict(zip(ATTRIBUTES, labels[0].tolist(), strict=True))
    assert said["house"] == 1 and said["water"] == ATTRIBUTES["water"].index("lake")
    assert said["time"] == ATTRIBUTES["time"].index("night") and said["mountains"] == -1
    assert (labels[1] == -1).all()
    score = AttributeScore()
    assert score.accuracy == 0.0
    guess = torch.zeros_like(labels)
    guess[0] = labels[0].clamp_min(0)
    guess[0, list(ATTRIBUTES).index("house")] = 0
    score.update(guess, labels)
    assert score.accuracy == pytest.approx(2 / 3)
    assert score.by_attribute["house"] == 0.0 and score.by_attribute["time"] == 1.0
    assert score.by_attribute["mountains"] is None


def test_latency_is_a_median_of_interleaved_runs(monkeypatch):
    clock, calls, emptied = [0.0], [], []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])

    def path(name, seconds):
        def make(number):
            calls.append((name, number))
            clock[0] += 100.0 if number in (-1, 1) else seconds + number / 1000  # slow: warm-up and one round

        return make

    def before():
        emptied.append(1)
        clock[0] += 7.0  # what happens before a picture is not counted

    paths = {"a": path("a", 0.002), "b": path("b", 0.01)}
    result = latency.median_latency(paths, 5, before=before)
    assert [name for name, _ in calls] == ["a", "b"] * 6
    assert [number for _, number in calls][::2] == [-1, 0, 1, 2, 3, 4]
    assert len(emptied) == 12
    # rounds of 0, 2, 3, 4 ms more and one of 100 s: the median is the one of 3 ms
    assert result["a"] == pytest.approx(5.0) and result["b"] == pytest.approx(13.0)
    with pytest.raises(ValueError, match="runs=0"):
        latency.median_latency({}, 0)
