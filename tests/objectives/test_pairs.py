from __future__ import annotations

import math
import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn

from l2p.errors import UserError
from l2p.features import PerceptualDistance, load_features, unit
from l2p.objectives import check_combinations
from l2p.objectives.pairs import PairsObjective, charbonnier
from l2p.recipe import Recipe, StageConfig


def one_step(picture):
    return lambda x_t, t: picture


def test_zero_loss_and_zero_gradient_at_equality(context, teacher, lift):
    images = context(None).batch.images
    picture = images.clone().requires_grad_()
    terms = PairsObjective(teacher=teacher, lift=lift)(context(one_step(picture), images))
    assert set(terms) == {"pixel", "gradient", "seam", "latent", "perceptual"}
    assert all(abs(value.item()) < 1e-6 for value in terms.values())
    sum(terms.values()).backward()
    assert picture.grad.abs().max() < 1e-6


def test_a_constant_offset_has_its_closed_form(context, teacher, lift):
    """Charbonnier sqrt(c^2 + e^2) - e; the lift's latents move by c A^T 1 / s."""
    c, edge = 0.25, 0.01
    images = context(None).batch.images * 0.5
    knobs = {"pixel": 2.0, "edge": edge, "latent": 0.5, "perceptual": 0.0}
    terms = PairsObjective(teacher=teacher, lift=lift, **knobs)(context(one_step(images + c), images))
    assert terms["pixel"].item() == pytest.approx(2 * (math.sqrt(c**2 + edge**2) - edge), rel=1e-5)
    move = c * lift.basis.sum(0) / lift.scale
    wanted = 0.5 * (move.abs().mean() + 0.5 * move.square().mean())
    assert terms["latent"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_ramp_and_a_seam_have_their_closed_form(context, teacher, lift):
    """A ramp of g a column moves every difference along the rows by g; a seam of height h one column of them."""
    edge, g, h = 0.01, 0.02, 0.4
    images = context(None).batch.images * 0.5
    width = images.shape[3]
    columns = torch.arange(width, dtype=images.dtype)
    objective = PairsObjective(
        teacher=teacher, lift=lift, gradient=3.0, edge=edge, latent=0.0, perceptual=0.0
    )
    ramp = objective(context(one_step(images + g * columns), images))["gradient"].item()
    assert ramp == pytest.approx(3 * (math.sqrt(g**2 + edge**2) - edge), rel=1e-4)
    seam = objective(context(one_step(images + h * (columns >= width // 2)), images))
    height = math.sqrt(h**2 + edge**2) - edge
    assert seam["gradient"].item() == pytest.approx(3 * height / (width - 1), rel=1e-4)
    # The teacher's cells are 2 pixels wide: 7 borders across, and the step stands on one of them.
    assert seam["seam"].item() == pytest.approx(0.5 * height / 7, rel=1e-4)
    beside = objective(context(one_step(images + h * (columns >= width // 2 + 1)), images))
    assert beside["seam"].item() == pytest.approx(0, abs=1e-6)


def test_squared_is_that_of_pixels_and_of_their_differences(context, teacher, lift):
    """A dot of height h in n pixels a side of 3 channels: h^2 / n^2, and two differences of h along either axis."""
    h, images = 0.5, torch.zeros(2, 3, 16, 16)
    dot = images.clone()
    dot[..., 4, 7] = h
    knobs = {"pixel": 0.0, "gradient": 0.0, "seam": 0.0, "latent": 0.0, "perceptual": 0.0}
    objective = PairsObjective(teacher=teacher, lift=lift, squared=3.0, **knobs)
    terms = objective(context(one_step(dot), images))
    assert set(terms) == {"squared"}
    wanted = h**2 * (1 / (16 * 16) + 2 * 2 / (15 * 16))
    assert terms["squared"].item() == pytest.approx(3 * wanted, rel=1e-5)
    even = objective(context(one_step(images + h), images))["squared"]
    assert even.item() == pytest.approx(3 * h**2, rel=1e-5)  # a constant has no differences
    # A dot twice as bright counts four times, where an absolute error counts it twice.
    brighter = objective(context(one_step(2 * dot), images))["squared"]
    assert brighter.item() == pytest.approx(4 * terms["squared"].item(), rel=1e-5)


def test_the_encoder_compares_with_the_kept_latent(context, teacher, lift):
    step = context(one_step(torch.zeros(4, 3, 16, 16)))
    knobs = {"pixel": 0.0, "latent": 1.0, "latent_space": "encoder", "perceptual": 0.0}
    z = step.batch.latents
    value = PairsObjective(teacher=teacher, lift=lift, **knobs)(step)["latent"]
    assert value.item() == pytest.approx((z.abs().mean() + 0.5 * z.square().mean()).item(), rel=1e-5)


def test_terms_of_weight_zero_are_not_computed(context, teacher, lift):
    teacher.encode, teacher.vae = None, None
    objective = PairsObjective(teacher=teacher, lift=lift, gradient=0.0, seam=0.0, latent=0.0, perceptual=0.0)
    assert set(objective(_with_latents(context))) == {"pixel"}


def _with_latents(context):
    images = torch.zeros(1, 3, 1, 1)
    return context(one_step(images), images)


def test_the_student_draws_once_for_all_objectives(context, teacher, lift):
    calls = []

    def student(x_t, t):
        calls.append(t.clone())
        return torch.zeros_like(x_t)

    step, objective = context(student), PairsObjective(teacher=teacher, lift=lift)
    objective(step), objective(step)
    assert len(calls) == 1 and torch.equal(calls[0], torch.ones(4))


def test_frozen_networks_are_invisible_and_still_pass_the_gradient(context, teacher, lift):
    objective = PairsObjective(teacher=teacher, lift=lift)
    assert not list(objective.parameters()) and not objective.state_dict() and not list(objective.children())
    picture = torch.zeros(4, 3, 16, 16, requires_grad=True)
    objective(context(one_step(picture)))["perceptual"].backward()
    assert picture.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.vae.encoder.parameters())


def test_the_costly_term_sees_a_fraction_chosen_by_the_step(context, teacher, lift):
    seen = []

    class Spy(PerceptualDistance):
        def __call__(self, x, target, even=None):
            seen.append(x[:, 0, 0, 0].tolist())
            return super().__call__(x, target, even)

    pictures = torch.arange(8.0)[:, None, None, None].expand(8, 3, 16, 16) / 8
    objective = PairsObjective(teacher=teacher, lift=lift, perceptual_fraction=0.5)
    objective._distance = Spy("encoder", teacher)
    for seed in (1, 1, 2):
        objective(context(one_step(pictures), seed=seed, count=8))
    assert len(seen[0]) == 4 and seen[0] == seen[1] != seen[2]
    assert seen[0] == sorted(set(seen[0]))


@pytest.mark.parametrize(
    ("knobs", "maps"),
    [({}, [8, 4, 2]), ({"perceptual_network": "encoder@0,1", "feature_scale": 0.5}, [4, 2])],
)
def test_fewer_blocks_and_smaller_pictures_cost_less(context, teacher, lift, knobs, maps):
    objective = PairsObjective(teacher=teacher, lift=lift, **knobs)
    sizes = []
    for block in teacher.vae.encoder.down_blocks:
        block.register_forward_hook(lambda *args: sizes.append(args[2].shape[-1]))
    objective(context(one_step(torch.zeros(4, 3, 16, 16))))
    assert sizes == maps * 2  # target, then student


def test_features_are_those_inside_the_real_encoder(tiny_pipeline):
    from l2p.teachers import load_teacher

    teacher = load_teacher(tiny_pipeline)
    wanted = []
    for block in teacher.vae.encoder.down_blocks:
        block.register_forward_hook(lambda *args: wanted.append(args[2]))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        teacher.encode(images)
        inside = list(wanted)
        assert all(
            torch.equal(f, g)
            for f, g in zip(load_features("encoder", teacher).maps(images), inside, strict=True)
        )
    distance = PerceptualDistance("encoder@0,1", teacher)
    assert distance(images, images).abs().max() < 1e-6
    assert (distance(images, images.flip(0)) > 1e-3).all()


def test_features_of_zero_have_a_finite_gradient():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit(features).sum().backward()
    assert features.grad.isfinite().all()
    x = torch.zeros(3, requires_grad=True)
    charbonnier(x, torch.zeros(3), 1e-3).backward()
    assert torch.equal(x.grad, torch.zeros(3))


def test_lpips_offline_is_one_clear_line(monkeypatch, teacher, lift):
    lpips = pytest.importorskip("lpips")

    def offline(**kwargs):
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(UserError, match="choose encoder") as error:
        PairsObjective(teacher=teacher, lift=lift, perceptual_network="lpips")
    assert "\n" not in str(error.value)


def test_lpips_not_installed_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match="needs the lpips package"):
        PerceptualDistance("lpips")


def test_lpips_is_the_package_s_own_number(monkeypatch):
    """With a small random backbone, since the trained one is a download; the calibrated layers come with the package."""
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(0)
    network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()
    monkeypatch.setattr(lpips, "LPIPS", lambda **kwargs: network)
    distance = PerceptualDistance("lpips")
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(distance(x, y), network(x, y).flatten(), rtol=1e-3)
    assert not any(p.requires_grad for p in network.parameters())


def test_a_teacher_without_an_encoder_is_told(teacher, lift):
    teacher.vae = nn.Identity()
    with pytest.raises(UserError, match="no VAE encoder"):
        PairsObjective(teacher=teacher, lift=lift)


def test_fresh_noise_breaks_the_pair(context, teacher, lift):
    seen = []
    step = context(lambda x, t: seen.append(x) or torch.zeros_like(x))
    PairsObjective(teacher=teacher, lift=lift, noise="fresh", perceptual=0.0)(step)
    assert len(seen) == 1 and (seen[0] * step.batch.noise).mean().abs() < 0.05
    assert seen[0].std().item() == pytest.approx(1, abs=0.05)


def test_blocks_that_the_encoder_lacks(teacher, lift):
    with pytest.raises(UserError, match="the encoder of small has no layer 3, expected -3 to 2"):
        PairsObjective(teacher=teacher, lift=lift, perceptual_network="encoder@3")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("lpips@1", "lpips has its own layers"),
        ("timm:vit_smal_patch16_224", "did you mean vit_small_patch16_224"),
        ({"encoder": 0.0}, "no term has a weight above 0"),
        ("vgg", "no feature network 'vgg'"),
    ],
)
def test_networks_that_are_none_are_refused_before_anything_is_loaded(network, message):
    objectives = {"pairs": {"perceptual_network": network}}
    with pytest.raises(UserError, match=message):
        check_combinations(StageConfig(objectives=objectives), Recipe())
