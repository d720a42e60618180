"""The core's guess of the teacher's latents, against the teacher itself, and the decoder's picture of the guess."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from l2p.errors import UserError
from l2p.objectives import OBJECTIVES, CriticObjective, check_combinations
from l2p.objectives.latents import LatentsObjective
from l2p.objectives.pairs import PairsObjective
from l2p.patches import patchify
from l2p.recipe import HeadConfig, Recipe, StageConfig, StudentConfig
from l2p.students.build import from_teacher

LATEST = 0.9
PIXELS = {"gradient": 0.0, "seam": 0.0, "latent": 0.0, "perceptual": 0.0}


def test_an_untrained_core_guesses_the_teacher_s_own_single_step(real, step):
    """``z_t - t u(z_t, t)`` of the noise's latents, at the latest time that the core is told."""
    teacher, lift = real
    ctx = step()
    with torch.no_grad():
        z_t = teacher.unpack(patchify(ctx.batch.noise, 16) @ lift.basis.float())
        t = torch.full((2,), LATEST)
        wanted = z_t - LATEST * teacher.velocity(z_t, t, ctx.batch.conditioning, 0.0)
        found = ctx.latents
    assert found.shape == ctx.batch.latents.shape
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
    assert (wanted - z_t).norm() > 0.05 * z_t.norm()  # the velocity matters
    loss = LatentsObjective(teacher=teacher, lift=lift)(ctx)["mse"]
    assert loss.item() == pytest.approx(F.mse_loss(wanted, ctx.batch.latents).item(), rel=1e-4)


def test_the_gradient_reaches_the_core_and_of_the_head_the_teacher_s_layer_alone(real, step):
    teacher, lift = real
    ctx = step()
    LatentsObjective(teacher=teacher, lift=lift)(ctx)["mse"].backward()
    moved = {n for n, p in ctx.student.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {n for n in moved if n.startswith("head.")} == {
        n for n, _ in ctx.student.named_parameters() if n.startswith("head.final.")
    }
    layers = [n for n, _ in ctx.student.core.named_parameters() if n.startswith("transformer.layers.")]
    assert {f"core.{name}" for name in layers} <= moved


def test_decoded_is_the_teacher_s_decoder_s_picture(real, step):
    teacher, _ = real
    ctx = step()
    assert not ctx.decoded.requires_grad and ctx.latents.requires_grad  # whichever was asked first
    with torch.no_grad():
        assert torch.equal(ctx.decoded, teacher.decode(ctx.latents).clamp(-1, 1))


def test_a_picture_that_is_the_decoder_s_has_no_gradient(real, step):
    teacher, lift = real
    ctx = step()
    objective = PairsObjective(
        teacher=teacher, lift=lift, target="decoder", squared=1.0, latent=1.0, latent_space="lift"
    )
    ctx.picture = ctx.decoded.clone().requires_grad_()  # in place of the cached one
    terms = objective(ctx)
    assert all(abs(value.item()) < 1e-6 for value in terms.values())
    sum(terms.values()).backward()
    assert ctx.picture.grad.abs().max() < 1e-6
    off = step()
    off.picture = (ctx.decoded + 0.25).requires_grad_()
    assert objective(off)["squared"].item() == pytest.approx(0.0625, rel=1e-4)  # and no other target


def test_the_encoder_then_compares_with_the_guess(real, step):
    teacher, lift = real
    ctx = step()
    knobs = {"pixel": 0.0, **PIXELS, "latent": 1.0, "latent_space": "encoder"}
    value = PairsObjective(teacher=teacher, lift=lift, target="decoder", **knobs)(ctx)["latent"]
    with torch.no_grad():
        gap = teacher.encode(ctx.picture) - ctx.latents
    assert value.item() == pytest.approx((gap.abs().mean() + 0.5 * gap.square().mean()).item(), rel=1e-4)


@pytest.mark.parametrize("first", ["latents", "pairs"])
def test_the_core_runs_once_and_learns_whatever_the_order(real, step, first):
    teacher, lift = real
    ctx = step()
    passes, whole = [], ctx.student(ctx.batch.noise, torch.ones(2), ctx.batch.conditioning)
    ctx.student.core.register_forward_hook(lambda *args: passes.append(1))
    objectives = {
        "latents": LatentsObjective(teacher=teacher, lift=lift),
        "pairs": PairsObjective(teacher=teacher, lift=lift, target="decoder", **PIXELS),
    }
    terms = {name: objectives[name](ctx) for name in sorted(objectives, key=lambda name: name != first)}
    assert len(passes) == 1 and torch.allclose(ctx.picture, whole, atol=1e-5)
    layer = ctx.student.core.layers[-1].attention.to_q.weight
    for term in (terms["latents"]["mse"], terms["pairs"]["pixel"]):
        (gradient,) = torch.autograd.grad(term, layer, retain_graph=True)
        assert gradient.abs().max() > 0


IN_LATENTS = {
    "adversarial": {"space": "latents", "features": "transformer@0,-1", "width": 8},
    "distribution": {"space": "latents", "guidance_scale": 1.0},
    "drift": {"space": "latents", "features": "transformer", "grids": [1]},
}


@pytest.mark.parametrize("name", IN_LATENTS)
def test_an_objective_in_latents_teaches_the_core_and_asks_neither_head_nor_vae(
    real, step, name, monkeypatch
):
    teacher, lift = real
    objective = OBJECTIVES[name](teacher=teacher, lift=lift, **IN_LATENTS[name])
    ctx = step()
    for asked in ("encode", "decode"):
        monkeypatch.setattr(teacher, asked, lambda *args: pytest.fail("the VAE ran"))
    monkeypatch.setattr(ctx.student, "forward_head", lambda *args: pytest.fail("the head ran"))
    if isinstance(objective, CriticObjective):
        if name == "adversarial":  # a fresh critic is undecided and pushes nobody
            torch.nn.init.normal_(objective.critic.outs[0].weight)
        sum(objective.critic_loss(ctx).values()).backward()
        assert all(p.grad is not None for p in objective.parameters())
        assert all(p.grad is None for p in ctx.student.parameters())
        objective.zero_grad()
    sum(objective(ctx).values()).backward()
    assert ctx.student.core.layers[-1].attention.to_q.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in (*objective.parameters(), *teacher.transformer.parameters()))


def test_a_latent_critic_sees_reals_and_their_r1_copy_through_one_noise(real, step):
    teacher, lift = real
    objective = OBJECTIVES["adversarial"](teacher=teacher, lift=lift, space="latents", teacher_time=0.5)
    ctx, seen, look = step(), [], objective._features.of_latents

    def spy(z, probe):
        seen.append((z, probe.t, probe.eps))
        return look(z, probe)

    objective._features.of_latents = spy
    objective.critic_loss(ctx)
    (fake, *_), (reals, t, eps), (noisy, t_noisy, eps_noisy) = seen
    assert torch.equal(fake, ctx.latents) and torch.equal(reals, ctx.batch.latents)
    assert torch.equal(t, t_noisy) and torch.equal(eps, eps_noisy) and 0 < t.min() and t.max() <= 0.5
    assert ((noisy - reals).std() / objective.r1_noise).item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"head": HeadConfig("unet")}, "for which a unet head has no layer: set student.head.kind=patch"),
        ({"head": HeadConfig("linear")}, "for which a linear head has no layer"),
        ({"num_steps": 2}, "for students of one step, this one has 2: set student.num_steps=1"),
    ],
)
@pytest.mark.parametrize(
    ("objectives", "key"),
    [
        ({"latents": {}}, "objectives.latents"),
        ({"pairs": {"target": "decoder"}}, "objectives.pairs.target=decoder"),
        *(({name: knobs}, f"objectives.{name}.space=latents") for name, knobs in IN_LATENTS.items()),
    ],
)
def test_students_without_latents_are_refused(objectives, key, student, message):
    stage = StageConfig(objectives=objectives)
    check_combinations(stage, Recipe(name="x"))
    with pytest.raises(UserError, match=f"{key} .*{message}") as error:
        check_combinations(stage, Recipe(name="x", student=StudentConfig(**student)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["linear", "unet"])
def test_a_head_without_latents_says_so(real, step, kind):
    teacher, lift = real
    ctx = step(from_teacher(teacher, lift, StudentConfig(head=HeadConfig(kind, width=4))))
    with pytest.raises(UserError, match=f"a {kind} head reads no latents off the core") as error:
        _ = ctx.latents
    assert "\n" not in str(error.value)


def test_the_decoder_s_picture_is_of_the_pairs_noise():
    stage = StageConfig(objectives={"pairs": {"target": "decoder", "noise": "fresh"}})
    with pytest.raises(UserError, match="leave objectives.pairs.noise at coupled"):
        check_combinations(stage, Recipe(name="x"))
