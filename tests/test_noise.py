"""Noise of a seed by two generators: what student and teacher see of it, in parts and whole, on either device."""

from __future__ import annotations

import math

import pytest
import torch
from l2p_kernels import philox_normal

from l2p import flow
from l2p.errors import UserError
from l2p.noise import FREE, LATENTS, PhiloxNoise, latent_noise, noise_of, pixel_noise
from l2p.patches import patchify

P, D = 8, 20


@pytest.fixture(scope="module")
def basis():
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(3 * P * P, D, generator=generator, dtype=torch.float64))[0].float()


def test_the_parts_are_the_seeds_own_streams(basis):
    """eps = A w + (I - A A^T) f in fp64, of whole streams drawn at once."""
    tokens = patchify(pixel_noise("philox", [3, 11], 16, 24, basis), P).double()
    w, f = (
        torch.stack([philox_normal(torch.empty(2, 3, n), seed, stream) for seed in (3, 11)]).double()
        for stream, n in ((LATENTS, D), (FREE, 3 * P * P))
    )
    a = basis.double()
    torch.testing.assert_close(tokens, f + (w - f @ a) @ a.T, rtol=0, atol=2e-6)
    torch.testing.assert_close(tokens @ a, w, rtol=0, atol=2e-6)
    assert torch.equal(latent_noise("philox", [3, 11], 16, 24, basis), w.float())


def test_any_rows_are_those_of_the_whole(basis):
    noise = PhiloxNoise([4, 5], 32, 16, basis)
    whole = noise.rows(0, 32)
    for start, stop in ((0, 1), (5, 20), (31, 32), (8, 16)):
        torch.testing.assert_close(noise.rows(start, stop), whole[:, :, start:stop], rtol=0, atol=1e-6)
    assert torch.equal(noise.latents(1, 3), noise.latents()[:, 1:3])
    assert torch.equal(pixel_noise("philox", [5], 32, 16, basis)[0], whole[1])


def test_pixel_noise_is_white(basis):
    eps = pixel_noise("philox", [1], 512, 512, basis).double()
    n = eps.numel()
    assert abs(eps.mean()) < 4 / math.sqrt(n) and abs(eps.var() - 1) < 4 * math.sqrt(2 / n)
    for axis in (1, 2, 3):
        for lag in (1, P):
            assert abs((eps * eps.roll(lag, axis)).mean()) < 4 / math.sqrt(n)
    tokens = patchify(eps, P).flatten(0, 2)
    covariance = tokens.T @ tokens / len(tokens)
    assert (covariance - torch.eye(3 * P * P)).abs().max() < 6 / math.sqrt(len(tokens)) * 1.5


def test_without_a_lift_all_noise_is_free(basis):
    eps = pixel_noise("philox", [2], 8, 8, torch.zeros_like(basis))
    free = philox_normal(torch.empty(1, 1, 1, 3 * P * P), 2, FREE)
    assert torch.equal(patchify(eps, P), free)


def test_mt19937_is_the_noise_of_before(basis):
    assert torch.equal(pixel_noise("mt19937", [7], 16, 8, basis), flow.noise([7], 3, 16, 8))
    tokens = patchify(flow.noise([7], 3, 16, 8), P)
    assert torch.equal(latent_noise("mt19937", [7], 16, 8, basis), tokens @ basis)


def test_an_unknown_generator_is_one_line(basis):
    with pytest.raises(UserError, match="noise generator is 'pcg', expected philox or mt19937"):
        noise_of("pcg", [1], 8, 8, basis)


def test_on_a_gpu_nothing_comes_from_the_host(basis):
    """Latents of a picture: one launch, no copy, whatever the size of the picture."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    called = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Names():
        noise = PhiloxNoise([1], 4096, 4096, torch.empty(3 * 64 * 64, 64, device="cuda"))
        latents = noise.latents()
    assert latents.device.type == "cuda" and latents.shape == (1, 64, 64, 64)
    assert called.count("l2p_kernels.philox_normal.default") == 1
    assert not any("copy" in name for name in called)
