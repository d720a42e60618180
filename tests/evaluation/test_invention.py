"""The invention map: what varies over free noise is found where it was planted, and nowhere else."""

import pytest
import torch

from l2p import flow
from l2p.evaluation import departure_map, free_noise, invention_map, student_invention
from l2p.patches import patchify


def test_the_map_is_the_deviation_where_it_was_planted():
    draws = torch.zeros(64, 2, 3, 24, 24)
    generator = torch.Generator().manual_seed(0)
    draws[:, 1, :, 8:16, 4:12] += 0.2 * torch.randn(
        64, 3, 8, 8, generator=generator
    )  # an object made up anew
    found = invention_map(draws)
    assert found.shape == (2, 24, 24) and found[0].max() == 0
    assert found[1, 8:16, 4:12].mean() == pytest.approx(0.2, rel=0.05)
    found[1, 8:16, 4:12] = 0
    assert found.max() == 0
    two = torch.stack([torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.4)])
    assert float(invention_map(two)[0, 0, 0]) == pytest.approx(0.4 / 2**0.5)  # unbiased, of two values
    with pytest.raises(ValueError, match="K at least 2"):
        invention_map(two[:1])


def test_free_noise_keeps_the_latent_noise_and_stays_white():
    basis = torch.linalg.qr(torch.randn(192, 16, generator=torch.Generator().manual_seed(1)).double()).Q
    eps = flow.noise(range(16), 3, 64, 64)
    varied = free_noise(eps, basis, 8, range(100, 116))
    torch.testing.assert_close(
        patchify(varied, 8).double() @ basis, patchify(eps, 8).double() @ basis, rtol=0, atol=2e-6
    )
    assert varied.mean().abs() < 0.01 and varied.var() == pytest.approx(1, abs=0.01)
    outside = patchify(varied - eps, 8)
    assert outside.square().mean() == pytest.approx(
        2 * (192 - 16) / 192, rel=0.02
    )  # two independent noises apart
    assert torch.equal(varied, free_noise(eps, basis, 8, range(100, 116)))


class _Sampler:
    """Draws the latent noise, and invents the strength of what lies outside in the left half."""

    class student:
        basis = torch.linalg.qr(torch.randn(48, 8, generator=torch.Generator().manual_seed(2)).double()).Q

        class spec:
            patch_size = 4

    def sample(self, conditioning, noise):
        from l2p.patches import unpatchify

        basis = self.student.basis.float()
        inside = unpatchify(patchify(noise, 4) @ basis @ basis.T, 4)
        inside[..., :8] += 0.1 * (noise - inside)[..., :8]
        return 0.1 * inside


def test_a_students_map_is_silent_where_only_the_span_decides():
    noise = flow.noise([1, 2], 3, 16, 16)
    found = student_invention(_Sampler(), None, noise, draws=8)
    assert found.shape == (2, 16, 16)
    assert found[..., 8:].max() < 1e-6 < 0.005 < found[..., :8].mean()
    assert torch.equal(found, student_invention(_Sampler(), None, noise, draws=8))


def test_the_departure_is_the_planted_difference_where_it_was_planted():
    clean = torch.zeros(2, 3, 16, 16)
    changed = clean.clone()
    changed[1, :, 4:8, 4:8] = torch.tensor([0.3, 0.0, 0.6])[:, None, None]
    found = departure_map(changed, clean)
    assert found[1, 4:8, 4:8] == pytest.approx((0.45 / 3) ** 0.5, abs=1e-7)
    found[1, 4:8, 4:8] = 0
    assert found.max() == 0
    with pytest.raises(ValueError, match="two equal shapes"):
        departure_map(clean, clean[:1])
