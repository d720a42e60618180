"""The lift against closed forms: what it recovers, what stays white, and one trajectory in both spaces."""

from __future__ import annotations

import pytest
import torch

from l2p import flow
from l2p.errors import UserError
from l2p.lift import (
    Lift,
    asymmetric_velocity,
    fit_lift,
    fit_readout,
    neighbourhoods,
    velocity_from_asymmetric,
    x_0_from_asymmetric,
)

D, d = 48, 6  # values of a pixel patch and of a latent token


def orthonormal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def pairs(
    noise: float = 0.0, count: int = 4000
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels, latents, the planted basis and offset; scale 0.37, latents with a mean and uneven variances."""
    generator = torch.Generator().manual_seed(1)
    basis, offset = orthonormal(D, d), torch.linspace(-1, 1, D, dtype=torch.float64)
    latents = torch.randn(count, d, generator=generator, dtype=torch.float64) * torch.arange(1, d + 1) + 2
    pixels = 0.37 * latents @ basis.T + offset
    return (
        pixels + noise * torch.randn(count, D, generator=generator, dtype=torch.float64),
        latents,
        basis,
        offset,
    )


@pytest.fixture(scope="module")
def lift() -> Lift:
    pixels, latents, _, _ = pairs(noise=0.5)
    return fit_lift(pixels, latents)


@pytest.mark.parametrize("scale", ["procrustes", "energy"])
def test_recovers_a_planted_map(scale):
    pixels, latents, basis, offset = pairs()
    lift = fit_lift(pixels, latents, scale)
    torch.testing.assert_close(lift.basis, basis, atol=1e-10, rtol=0)
    torch.testing.assert_close(lift.offset, offset, atol=1e-9, rtol=0)
    assert lift.scale == pytest.approx(0.37, abs=1e-12)
    assert (lift.r2, lift.r2_lstsq, lift.r2_pca) == pytest.approx((1, 1, 1), abs=1e-9)
    torch.testing.assert_close(lift.to_pixels(latents), pixels, atol=1e-9, rtol=0)


def test_basis_is_orthonormal_and_noise_stays_white(lift):
    torch.testing.assert_close(
        lift.basis.T @ lift.basis, torch.eye(d, dtype=torch.float64), atol=1e-12, rtol=0
    )
    eps = torch.randn(200_000, D, generator=torch.Generator().manual_seed(2))
    eps_z = lift.noise_to_latent(eps)
    assert (eps_z.T.cov() - torch.eye(d)).abs().max() < 0.015  # 5 standard errors of 200,000 draws
    assert eps_z.mean(0).abs().max() < 0.012


def test_shares_of_variance_equal_direct_fits(lift):
    """R2 from moments against residuals of every row; the bounds hold and the energy scale is the larger."""
    pixels, latents, _, _ = pairs(noise=0.5)
    total = (pixels - pixels.mean(0)).square().sum()
    assert lift.r2 == pytest.approx(
        1 - ((pixels - lift.to_pixels(latents)).square().sum() / total).item(), abs=1e-12
    )
    with_one = torch.cat([latents, torch.ones(len(latents), 1, dtype=torch.float64)], dim=1)
    fitted = with_one @ torch.linalg.lstsq(with_one, pixels).solution
    assert lift.r2_lstsq == pytest.approx(1 - ((pixels - fitted).square().sum() / total).item(), abs=1e-10)
    singular = torch.linalg.svdvals(pixels - pixels.mean(0)).square()
    assert lift.r2_pca == pytest.approx((singular[:d].sum() / singular.sum()).item(), abs=1e-10)
    energy = fit_lift(pixels, latents, "energy")
    assert energy.r2 < lift.r2 < lift.r2_lstsq < lift.r2_pca
    assert energy.scale > lift.scale
    z = latents - latents.mean(0)
    inside = (pixels - pixels.mean(0)) @ energy.basis
    assert energy.scale == pytest.approx((inside.norm() / z.norm()).item(), rel=1e-10)


def test_chunks_do_not_change_the_fit(lift, monkeypatch):
    pixels, latents, _, _ = pairs(noise=0.5)
    monkeypatch.setattr("l2p.lift.CHUNK", 999)
    torch.testing.assert_close(fit_lift(pixels, latents).basis, lift.basis, atol=1e-10, rtol=0)


def test_projected_pixel_path_is_the_latent_path(lift):
    """A^T (x_t - (1 - t) b) / k is (1 - t') z_0 + t' eps_z for pictures inside the span."""
    generator = torch.Generator().manual_seed(3)
    z_0 = torch.randn(5, 2, 3, d, generator=generator, dtype=torch.float64)
    eps = torch.randn(5, 2, 3, D, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    z_t = flow.add_noise(z_0, lift.noise_to_latent(eps), lift.latent_time(t))
    x_t = flow.add_noise(lift.to_pixels(z_0), eps, t)
    torch.testing.assert_close(lift.to_latent(x_t, t), z_t, atol=1e-12, rtol=0)
    torch.testing.assert_close(lift.pixel_time(lift.latent_time(t)), t, atol=1e-12, rtol=0)
    assert lift.k(1.0) == 1 and lift.latent_time(1.0) == 1 and lift.latent_time(0.0) == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_lifted_trajectory_is_the_latent_trajectory_mapped(lift, dtype, tolerance):
    """Euler in pixels with the lifted velocity equals Euler in latents at t' = t / k, at every step, and
    outside the span the picture goes straight from its noise to the offset."""
    mixing = orthonormal(d, d, seed=4).to(dtype)

    def latent_velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(2 * z @ mixing + 3 * flow.time_like(t, z)) - 0.3 * z.square().mean(-1, keepdim=True)

    def pixel_velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x_0 = lift.x_0(x, latent_velocity(lift.to_latent(x, t), lift.latent_time(t)), t)
        return (x - x_0) / flow.time_like(t, x)

    eps = torch.randn(3, 2, 2, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    times = torch.tensor([1.0, 0.93, 0.7, 0.5, 0.31, 0.08, 0.0], dtype=dtype)  # uneven and coarse on purpose
    for stop in range(2, len(times) + 1):
        x = flow.euler(pixel_velocity, eps, times[:stop])
        z = flow.euler(latent_velocity, lift.noise_to_latent(eps), lift.latent_time(times[:stop]))
        t = times[stop - 1].expand(3)
        torch.testing.assert_close(lift.to_latent(x, t), z, atol=tolerance, rtol=0)
    torch.testing.assert_close(x, lift.to_pixels(z), atol=tolerance, rtol=0)


def test_documented_velocity_inside_and_outside_the_span(lift):
    generator = torch.Generator().manual_seed(6)
    x_t = torch.randn(4, D, generator=generator, dtype=torch.float64)
    u_z = torch.randn(4, d, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    u = (x_t - lift.x_0(x_t, u_z, t)) / t[:, None]
    a, b, s = lift.basis, lift.offset, lift.scale
    inside = (1 - s) * lift.to_latent(x_t, t) + s / lift.k(t)[:, None] * u_z - b @ a
    torch.testing.assert_close(u @ a, inside, atol=1e-11, rtol=0)
    outside = torch.eye(D, dtype=torch.float64) - a @ a.T
    torch.testing.assert_close(u @ outside, (x_t - b) @ outside / t[:, None], atol=1e-11, rtol=0)


def test_asymmetric_velocity_recovers_the_velocity_and_the_picture(lift):
    generator = torch.Generator().manual_seed(7)
    x_0, eps = torch.randn(2, 3, 4, 4, D, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.06, 0.4, 1.0], dtype=torch.float64)
    x_t = flow.add_noise(x_0, eps, t)
    u_a = asymmetric_velocity(x_t, x_0, t, lift.basis)
    torch.testing.assert_close(u_a, eps @ lift.basis @ lift.basis.T - x_0, atol=1e-10, rtol=0)
    torch.testing.assert_close(
        velocity_from_asymmetric(x_t, u_a, t, lift.basis), eps - x_0, atol=1e-10, rtol=0
    )
    torch.testing.assert_close(x_0_from_asymmetric(x_t, u_a, t, lift.basis), x_0, atol=1e-10, rtol=0)
    whole, nothing = torch.eye(D, dtype=torch.float64), torch.zeros(D, 1, dtype=torch.float64)
    torch.testing.assert_close(asymmetric_velocity(x_t, x_0, t, whole), eps - x_0, atol=1e-10, rtol=0)
    torch.testing.assert_close(asymmetric_velocity(x_t, x_0, t, nothing), -x_0, atol=1e-10, rtol=0)


def test_half_precision_tokens_are_accepted(lift):
    x = torch.randn(2, 3, D).bfloat16()
    exact = lift.to_latent(x.double(), torch.tensor([0.3, 1.0]))
    torch.testing.assert_close(
        lift.to_latent(x, torch.tensor([0.3, 1.0])).double(), exact, atol=0.1, rtol=0.05
    )


def test_saved_lift_is_bit_identical(lift, tmp_path):
    lift.save(tmp_path / "lift.safetensors")
    again = Lift.load(tmp_path / "lift.safetensors")
    assert torch.equal(again.basis, lift.basis) and torch.equal(again.offset, lift.offset)
    for name in ("scale", "r2", "r2_lstsq", "r2_pca"):
        assert getattr(again, name) == getattr(lift, name)


def test_a_flipped_bit_anywhere_is_told_or_changes_nothing(lift, tmp_path):
    path = tmp_path / "lift.safetensors"
    lift.save(path)
    data = path.read_bytes()
    told = 0
    for place in [*range(8, len(data), len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            found = Lift.load(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            told += 1
            continue
        assert torch.equal(found.basis, lift.basis) and found.scale == lift.scale
    assert told > 35


def test_broken_files_are_one_clear_line(lift, tmp_path):
    path = tmp_path / "lift.safetensors"
    with pytest.raises(UserError, match="run the lift stage first"):
        Lift.load(path)
    lift.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged.*delete this file and run again"):
        Lift.load(path)
    from safetensors.torch import save_file

    save_file({"basis": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match="no lift"):
        Lift.load(path)


@pytest.mark.parametrize(
    ("pixels", "latents", "message"),
    [
        (torch.randn(10, 4), torch.randn(9, 2), "expected"),
        (torch.randn(10, 2), torch.randn(10, 4), "expected"),
        (torch.randn(3, 4), torch.randn(3, 3), "more pictures"),
        (torch.full((10, 4), torch.nan), torch.randn(10, 2), "NaN"),
        (torch.ones(10, 4), torch.randn(10, 2), "constant"),
    ],
)
def test_impossible_fits_are_refused(pixels, latents, message):
    with pytest.raises(ValueError, match=message):
        fit_lift(pixels, latents)


def test_r2_lstsq_is_of_the_best_affine_map():
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(500, 6, generator=generator, dtype=torch.float64) + 1
    pixels = latents @ torch.randn(6, 20, generator=generator, dtype=torch.float64)
    pixels = pixels + torch.randn(500, 20, generator=generator, dtype=torch.float64)
    design = torch.cat([latents, torch.ones(500, 1, dtype=torch.float64)], dim=1)
    residual = (pixels - design @ torch.linalg.lstsq(design, pixels).solution).square().sum()
    explained = 1 - residual / (pixels - pixels.mean(0)).square().sum()
    assert abs(float(explained) - fit_lift(pixels, latents).r2_lstsq) < 1e-9


def test_the_readout_finds_the_convolution_that_made_the_pixels():
    generator = torch.Generator().manual_seed(6)
    latents = torch.randn(40, 5, 4, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 3, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(7, generator=generator, dtype=torch.float64)
    made = torch.nn.functional.conv2d(latents.permute(0, 3, 1, 2), weight, bias, padding=1)
    pixels = made.permute(0, 2, 3, 1).flatten(0, 2)
    (found, offset), explained = fit_readout(pixels, neighbourhoods(latents).flatten(0, 2))
    torch.testing.assert_close(found, weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(offset, bias, atol=1e-4, rtol=0)
    assert 1 - 1e-6 < explained <= 1
    noisy = pixels + torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    (found, offset), explained = fit_readout(noisy, neighbourhoods(latents).flatten(0, 2))
    drawn = torch.nn.functional.conv2d(latents.permute(0, 3, 1, 2), found, offset, padding=1)
    residual = (noisy - drawn.permute(0, 2, 3, 1).flatten(0, 2)).square().sum()
    assert abs(1 - float(residual / (noisy - noisy.mean(0)).square().sum()) - explained) < 1e-6
