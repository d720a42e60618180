"""The published decoder's sampler against its formulas, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from l2p import flow
from l2p.errors import UserError
from l2p.published.pid import PublishedPiD


@pytest.fixture
def decoder(tiny_pid_net) -> PublishedPiD:
    return PublishedPiD(tiny_pid_net("pid-flux-2k").float(), "pid-flux-2k")


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(2, 16, 2, 3, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("steps", "times"),
    [
        (4, [0.999, 0.866, 0.634, 0.342, 0.0]),
        (3, [0.999, 0.866, 0.342, 0.0]),
        (2, [0.999, 0.634, 0.0]),
        (1, [1.0, 0.0]),
    ],
)
def test_steps_are_the_published_ones(decoder, latents, steps, times):
    """x_0 = x - t u, then fresh noise at the next time; the second picture is that of the next seed."""
    text = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(6))
    pictures = decoder.decode(latents, [0.0, 0.4], text, seed=7, num_inference_steps=steps)
    assert pictures.shape == (2, 3, 32, 48) and pictures.dtype == torch.float32
    generator = torch.Generator().manual_seed(8)
    x = flow.noise_from([generator], 3, 32, 48).double()
    net = decoder.net.double()
    for t, after in zip(times[:-1], times[1:], strict=True):
        sigma = torch.tensor([0.4], dtype=torch.float64)
        u = net(x, torch.tensor([t], dtype=torch.float64), text[1:].double(), latents[1:].double(), sigma)
        x = x - t * u
        if after > 0:
            x = (1 - after) * x + after * flow.noise_from([generator], 3, 32, 48).double()
    assert (x.abs() > 1).any()  # so that clamping is seen
    torch.testing.assert_close(pictures[1].double(), x[0].detach().clamp(-1, 1), rtol=1e-3, atol=1e-3)


def test_variance_preserving_latents_come_in_the_flow_of_this_house(tiny_pid_net, monkeypatch):
    """z_0 and eps weigh sqrt(1 - s^2) and s when the network sees them."""
    decoder = PublishedPiD(tiny_pid_net("pid-sdxl-2kto4k"), "pid-sdxl-2kto4k", "variance-preserving")
    seen = {}

    def net(x, t, text, latents, sigma):
        seen.update(latents=latents, sigma=sigma)
        return torch.zeros_like(x)

    monkeypatch.setattr(decoder.net, "forward", net)
    z_0, eps = torch.randn(2, 1, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    decoder.decode(flow.add_noise(z_0, eps, 0.3), 0.3, num_inference_steps=1)
    s = float(seen["sigma"])
    assert s == pytest.approx(0.3 / (0.7**2 + 0.3**2) ** 0.5)
    torch.testing.assert_close(seen["latents"], (1 - s**2) ** 0.5 * z_0 + s * eps)


def test_flux2_latents_come_loose_or_packed(tiny_pid_net):
    """Packed, a cell's 2 x 2 neighbours are the four channels after one another, as diffusers patchifies them."""
    decoder = PublishedPiD(tiny_pid_net("pid-flux2-2kto4k-v1.5").float(), "pid-flux2-2kto4k-v1.5")
    loose = torch.randn(1, 32, 2, 4, generator=torch.Generator().manual_seed(1))
    packed = loose.view(1, 32, 1, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 128, 1, 2)
    pictures = [decoder.decode(z, 0.1, num_inference_steps=1) for z in (loose, packed)]
    assert torch.equal(*pictures) and pictures[0].shape == (1, 3, 32, 64)
    assert (decoder.spec.geometry.channels, decoder.spec.geometry.compression) == (32, 8)
    with pytest.raises(UserError, match="their sides must be even"):
        decoder.decode(loose[:, :, :1])


def test_seed_and_caption_decide(decoder, latents):
    first = decoder.decode(latents, 0.0, seed=1, num_inference_steps=2)
    assert torch.equal(first, decoder.decode(latents, 0.0, seed=1, num_inference_steps=2))
    alone = decoder.decode(latents[1:], 0.0, seed=2, num_inference_steps=2)
    torch.testing.assert_close(alone, first[1:], rtol=1e-5, atol=1e-4)  # sums in another order
    assert not torch.equal(first, decoder.decode(latents, 0.0, seed=3, num_inference_steps=2))
    text = torch.ones(1, 3, 16)  # one caption for both
    assert not torch.equal(first, decoder.decode(latents, 0.0, text, seed=1, num_inference_steps=2))
    assert not torch.equal(first, decoder.decode(latents, 0.5, seed=1, num_inference_steps=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": torch.zeros(1, 4, 2, 2)}, r"reads latents \[B, 16, h, w\], got \[1, 4, 2, 2\]"),
        ({"latents": torch.zeros(16, 2, 2)}, r"reads latents \[B, 16, h, w\]"),
        ({"latents": torch.zeros(1, 16, 0, 2)}, "reads latents"),
        ({"latents": torch.full((1, 16, 2, 2), torch.nan)}, "the latents hold NaN or infinity"),
        ({"sigma": 1.5}, r"from 0 to 1; got \[1.5\]"),
        ({"sigma": float("nan")}, "from 0 to 1"),
        ({"sigma": [0.1, 0.2, 0.3]}, "one number, or one a picture"),
        ({"prompt_embeds": torch.zeros(1, 3, 7)}, r"reads prompt_embeds \[1, L, 16\], got \[1, 3, 7\]"),
        ({"num_inference_steps": 5}, "decodes in 1 to 4 steps, got 5"),
        ({"num_inference_steps": 0}, "decodes in 1 to 4 steps, got 0"),
    ],
)
def test_refusals(decoder, changes, message):
    given = {"latents": torch.zeros(1, 16, 2, 2), **changes}
    with pytest.raises(UserError, match=message):
        decoder.decode(**given)
