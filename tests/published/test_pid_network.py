"""The published PiD network against an independent fp64 reading, whole and module by module."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from l2p.published import pid
from l2p.published.pid_network import PiDNet, PiDSizes
from l2p.published.pid_positions import patch_angles, pixel_positions, text_angles

from . import pid_reference as reference
from .conftest import Doubled, randomised

SHAPES = {variant.sizes: name for name, variant in pid.PID_VARIANTS.items()}  # one variant a network
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def arrays(net: PiDNet) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in net.state_dict().items()}


def inputs(sizes: PiDSizes, seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows, columns = (2, 3) if sizes.latent_compression == 8 else (1, 2)
    side = sizes.latent_compression * sizes.scale
    return {
        "x_t": draw(2, 3, rows * side, columns * side),
        "t": torch.tensor([0.866, 0.25], dtype=torch.float64),
        "prompt_embeds": draw(2, 8, sizes.text_width),  # more tokens than are read
        "latents": draw(2, sizes.latent_channels, rows, columns),
        "sigma": torch.tensor([0.0, 0.6], dtype=torch.float64),
    }


@pytest.mark.parametrize("name", SHAPES.values())
def test_network_is_the_published_formulas(name, tiny_pid_net):
    net = tiny_pid_net(name)
    given = inputs(net.sizes)
    with torch.no_grad():
        ours = net(**given).numpy()
    for number in range(2):
        one = [given[k][number].numpy() for k in ("x_t", "t", "prompt_embeds", "latents", "sigma")]
        np.testing.assert_allclose(
            ours[number], reference.network(arrays(net), *one, asdict(net.sizes)), **CLOSE
        )


def test_modules_one_by_one(tiny_pid_net):
    net = tiny_pid_net("pid-flux2-2kto4k-v1.5")
    w, sizes, generator = arrays(net), net.sizes, torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, y, c, s = draw(6, 48), draw(5, 48), draw(48), draw(6, 48)
    angles = patch_angles(16, 2, 3, 4, x.device), text_angles(16, 5, x.device)
    turns = reference.patch_positions(16, 2, 3, 4), reference.text_positions(16, 5)
    for ours, theirs in zip(angles, turns, strict=True):
        np.testing.assert_allclose(np.exp(1j * ours.numpy()), theirs, **CLOSE)
    np.testing.assert_allclose(
        pixel_positions(8, 4, 6, x.device), reference.pixel_positions(8, 4, 6), **CLOSE
    )
    with torch.no_grad():
        pairs = {
            "time": (
                net.t_embedder(torch.tensor([0.634], dtype=torch.float64))[0],
                reference.time_embedding(w, 0.634),
            ),
            "joint block": (
                torch.cat(
                    [part[0] for part in net.patch_blocks[1](x[None], y[None], c[None, None], *angles)]
                ),
                np.concatenate(
                    reference.joint_block(w, "patch_blocks.1", x.numpy(), y.numpy(), c.numpy(), 3, *turns)
                ),
            ),
            "pixel block": (
                net.pixel_blocks[1](
                    pixels := draw(1, 6, 64, 8), s[None], patch_angles(12, 2, 3, 4, x.device)
                )[0],
                reference.pixel_block(
                    w,
                    "pixel_blocks.1",
                    pixels[0].numpy(),
                    s.numpy(),
                    2,
                    reference.patch_positions(12, 2, 3, 4),
                ),
            ),
            "gate": (
                net.lq_proj.gate_modules[1](x[None], s[None], torch.tensor([0.3], dtype=torch.float64))[0],
                reference.gate(w, "lq_proj.gate_modules.1", x.numpy(), s.numpy(), 0.3),
            ),
            "latent": (
                net.lq_proj(latent := draw(1, 128, 1, 2), 4, 8)[-1][0],
                reference.linear(
                    w, "lq_proj.pit_head", reference.latent_tokens(w, latent[0].numpy(), 4, 8, asdict(sizes))
                ),
            ),
        }
    for name, (ours, theirs) in pairs.items():
        np.testing.assert_allclose(ours, theirs, err_msg=name, **CLOSE)


@pytest.mark.parametrize("name", ["pid-sdxl-2kto4k", "pid-flux2-2kto4k-v1.5"])
def test_every_weight_matters_but_the_last_captions(name, tiny_pid_net):
    """Each tensor changes the picture; the last joint block's caption output is read by nobody, as published."""
    net = tiny_pid_net(name)
    net.requires_grad_(True)
    (net(**inputs(net.sizes)) ** 2).sum().backward()
    idle = {
        key for key, value in net.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0
    }
    last = f"patch_blocks.{net.sizes.depth - 1}."
    unread = ("attn.proj_y.weight", "attn.proj_y.bias", "attn.q_norm_y.weight", "norm_y2.weight")
    assert idle == {last + part for part in (*unread, *(f"mlp_y.w{n}.weight" for n in (1, 2, 3)))}


def test_patches_in_several_parts_are_the_same(tiny_pid_net, monkeypatch):
    net = tiny_pid_net("pid-flux-2k")
    given = inputs(net.sizes)
    with torch.no_grad():
        whole = net(**given)
        monkeypatch.setattr("l2p.published.pid_network.TOKENS_AT_ONCE", 5)
        torch.testing.assert_close(net(**given), whole, rtol=1e-12, atol=1e-12)


def test_half_precision_stays_near(tiny_pid_net):
    net = tiny_pid_net("pid-flux-2kto4k-v1.5")
    given = inputs(net.sizes)
    with torch.no_grad():
        exact, rough = net(**given), net.to(torch.bfloat16)(**given)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).pow(2).mean().sqrt() < 0.05 * exact.pow(2).mean().sqrt()


def test_no_caption_is_no_tokens(tiny_pid_net):
    net = tiny_pid_net("pid-sd3-2k")
    given = inputs(net.sizes)
    given["prompt_embeds"] = given["prompt_embeds"][:, :0]
    with torch.no_grad():
        ours = net(**given).numpy()
    one = [given[k][1].numpy() for k in ("x_t", "t", "prompt_embeds", "latents", "sigma")]
    np.testing.assert_allclose(ours[1], reference.network(arrays(net), *one, asdict(net.sizes)), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES.values())
def test_the_published_sizes_themselves(name):
    """1.4 B random weights in fp32, 7 GB of memory: the whole network at its published sizes against the fp64 reading."""
    net = randomised(PiDNet(pid.PID_VARIANTS[name].sizes)).eval()
    given = {key: value[:1].float() for key, value in inputs(net.sizes).items()}
    with torch.no_grad():
        ours = net(**given)[0].double().numpy()
    one = [given[k][0].double().numpy() for k in ("x_t", "t", "prompt_embeds", "latents", "sigma")]
    theirs = reference.network(Doubled(net.state_dict()), *one, asdict(net.sizes))
    error = np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean())
    print(f"{name}: {sum(p.numel() for p in net.parameters()):,} values, relative RMS {error:.1e}")
    assert error < 1e-4
