"""The critic's optimum, R1 by noise, and the student's gradient, where each is known in closed form."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2p.errors import UserError
from l2p.objectives.adversarial import (
    AdversarialObjective,
    Critic,
    captions,
    critic_loss,
    generator_loss,
    random_offset,
)
from l2p.recipe import CorpusConfig, Recipe, StageConfig
from l2p.teachers.protocol import Conditioning


class Linear(nn.Module):
    """A critic ``D(x) = w . x + b`` on one map."""

    def __init__(self, weight: list[float]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor(weight)), nn.Parameter(torch.zeros(()))

    def forward(self, maps, caption):
        return [torch.einsum("bchw,c->bhw", maps[0], self.weight) + self.bias]


def pixels_only(objective, critic):
    """The objective with pictures as their own features."""
    own = SimpleNamespace(maps=lambda images: [images], spec=SimpleNamespace(kind="encoder"))
    objective._features, objective.critic, objective.padding = own, critic, 0
    return objective


def test_the_best_critic_of_two_gaussians_is_their_log_ratio(context, teacher, lift):
    """p = N(m, s^2 I), q = N(-m, s^2 I): log p / q = 2 m . x / s^2."""
    n, s = 60_000, 0.8
    mean = torch.tensor([0.3, -0.2, 0.5])
    draws = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(0)) * s
    real, fake = (draws[0] + mean)[..., None, None], (draws[1] - mean)[..., None, None]
    objective = pixels_only(AdversarialObjective(teacher=teacher, lift=lift, r1=0.0), Linear([0.0, 0.0, 0.0]))
    optimiser = torch.optim.LBFGS(objective.critic.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = objective.critic_loss(context(lambda x, t: fake, real))["loss"]
        value.backward()
        return value

    optimiser.step(loss)
    wanted = 2 * mean / s**2
    assert (objective.critic.weight - wanted).abs().max() < 0.04 * wanted.norm()
    assert objective.critic.bias.abs() < 0.02
    # The student's gradient points down the critic: -(1 - sigmoid(D)) w / n at each sample.
    step = context(lambda x, t: fake, real)
    step.picture = fake.clone().requires_grad_()
    objective(step)["generator"].backward()
    weight = objective.critic.weight.detach()
    push = -torch.sigmoid(-(fake[..., 0, 0] @ weight + objective.critic.bias.detach()))[:, None] * weight / n
    assert torch.allclose(step.picture.grad[..., 0, 0], push, atol=1e-9)


def test_equal_distributions_leave_an_undecided_critic(context, teacher, lift):
    """At p = q the loss of D = 0 is 2 log 2, the least that any critic reaches, and the gradient there is zero."""
    images = torch.randn(4000, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    objective = pixels_only(AdversarialObjective(teacher=teacher, lift=lift, r1=0.0), Linear([0.0, 0.0, 0.0]))
    loss = objective.critic_loss(context(lambda x, t: images.flip(0), images))["loss"]
    assert loss.item() == pytest.approx(2 * math.log(2))
    loss.backward()
    assert objective.critic.weight.grad.abs().max() < 1e-6


def test_r1_by_noise_is_the_squared_gradient(context, teacher, lift):
    weight = [0.5, -1.0, 2.0]
    images = torch.randn(40_000, 3, 1, 1, generator=torch.Generator().manual_seed(2))
    objective = pixels_only(AdversarialObjective(teacher=teacher, lift=lift, r1=3.0), Linear(weight))
    penalty = objective.critic_loss(context(lambda x, t: images, images))["r1"].item()
    assert penalty == pytest.approx(3 / 2 * sum(w * w for w in weight), rel=0.02)


def test_the_losses_are_the_published_ones():
    real, fake = [torch.tensor([[[2.0, -0.5]]])], [torch.tensor([[[0.3, -3.0]]])]
    assert critic_loss(real, fake, "hinge").item() == pytest.approx((0 + 1.5) / 2 + (1.3 + 0) / 2)
    assert generator_loss(fake, "hinge").item() == pytest.approx(1.35)
    soft = lambda x: math.log1p(math.exp(x))  # noqa: E731
    assert critic_loss(real, fake, "softplus").item() == pytest.approx(
        (soft(-2) + soft(0.5)) / 2 + (soft(0.3) + soft(-3)) / 2
    )
    assert generator_loss(fake, "softplus").item() == pytest.approx((soft(-0.3) + soft(3)) / 2)


@pytest.mark.parametrize("loss", ["softplus", "hinge"])
def test_the_student_s_step_leaves_the_critic_alone_and_the_other_way_round(context, teacher, lift, loss):
    objective = AdversarialObjective(teacher=teacher, lift=lift, width=8, padding=4, loss=loss)
    picture = torch.zeros(4, 3, 16, 16, requires_grad=True)
    step = context(lambda x, t: picture)
    with torch.no_grad():
        for out in objective.critic.outs:
            out.weight.normal_()
    objective(step)["generator"].backward()
    assert picture.grad.abs().sum() > 0 and all(p.grad is None for p in objective.parameters())
    picture.grad = None
    terms = objective.critic_loss(step)
    assert set(terms) == {"loss", "r1"}
    sum(terms.values()).backward()
    assert picture.grad is None and all(p.grad is not None for p in objective.critic.parameters())
    assert all(p.grad is None for p in teacher.vae.encoder.parameters())
    assert all(name.startswith("critic.") for name in objective.state_dict())


def test_a_fresh_critic_pushes_nobody_and_a_caption_decides():
    critic = Critic([5], caption_dim=3, width=8)
    maps, caption = [torch.randn(2, 5, 4, 4)], torch.randn(2, 3)
    assert not critic(maps, caption)[0].any()
    nn.init.normal_(critic.captions[0].weight)
    swapped = critic(maps, caption.flip(0))[0]
    assert critic(maps, caption)[0].shape == (2, 4, 4)
    assert not torch.allclose(critic(maps, caption)[0], swapped)


def test_the_mean_of_a_caption_leaves_its_padding_out():
    embeds = torch.tensor([[[1.0], [3.0]], [[4.0], [0.0]]])
    assert captions(Conditioning(embeds, torch.tensor([2, 1]))).tolist() == [[2.0], [4.0]]


def test_the_offset_is_random_mirrors_the_edge_and_meets_every_phase():
    picture = torch.arange(12.0).expand(1, 1, 12, 12)
    generator = torch.Generator().manual_seed(0)
    firsts = [random_offset(picture, 4, generator)[0, 0, 0, 0].item() for _ in range(100)]
    assert set(firsts) == {0.0, 1.0, 2.0, 3.0, 4.0}  # four columns mirrored, or up to four cut away
    assert random_offset(picture, 0, generator) is picture
    padded = F.pad(picture, [4] * 4, mode="reflect")[0, 0]
    seen = random_offset(picture, 4, torch.Generator().manual_seed(1))[0, 0]
    assert any(torch.equal(seen, padded[:12, i : i + 12]) for i in range(9))


def test_renders_are_reals_with_their_own_captions(context, teacher, lift):
    from l2p.landscapes import Scene, caption, render_batch

    asked = []

    def encode(prompts):
        asked.extend(prompts)
        return Conditioning(torch.ones(len(prompts), 1, 1), torch.ones(len(prompts), dtype=torch.int64))

    teacher.encode_prompts = encode
    objective = AdversarialObjective(teacher=teacher, lift=lift, reals="renders")
    images, conditioning = objective._reals(context(None, count=2))
    found = captions(conditioning)
    picks = torch.randint(24_576, (2,), generator=torch.Generator().manual_seed(0)).tolist()
    assert asked == [caption(Scene.from_seed(1_000_000 + i)) for i in picks] and found.tolist() == [[1], [1]]
    wanted = torch.from_numpy(render_batch([1_000_000 + i for i in picks], 16, 16))
    assert torch.allclose(images, wanted.permute(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)


def test_renders_of_another_world_are_refused_before_anything_is_loaded():
    stage = StageConfig(objectives={"adversarial": {"reals": "renders"}})
    from l2p.objectives import check_combinations

    check_combinations(stage, Recipe(name="x"))
    with pytest.raises(UserError, match="reals=renders draws the world of corpus.prompts=landscapes"):
        check_combinations(stage, Recipe(name="x", corpus=CorpusConfig(prompts="prompts.txt")))
    with pytest.raises(UserError, match="objectives.adversarial trains a network .* fp16"):
        check_combinations(stage, Recipe(name="x", dtype="fp16"))


def test_a_teacher_without_an_encoder_is_told(lift):
    with pytest.raises(UserError, match="no VAE encoder"):
        AdversarialObjective(teacher=SimpleNamespace(name="bare"), lift=lift)
