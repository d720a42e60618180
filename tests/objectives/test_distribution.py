"""Distribution matching where every score is known: Gaussians, noised along the flow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from l2p import flow
from l2p.errors import UserError
from l2p.objectives import check_combinations
from l2p.objectives.distribution import DistributionObjective, PixelScore, clip_pixels
from l2p.recipe import Recipe, StageConfig, TeacherConfig

MEAN, DEVIATION = (0.5, -0.3, 0.1), (0.6, 0.3, 0.8)


class Gaussian(nn.Module):
    """The flow of N(mean, deviation^2) a channel, exactly."""

    def __init__(self, mean=MEAN, deviation=DEVIATION) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.log_deviation = nn.Parameter(torch.tensor(deviation).log())

    def x_0(self, x_t, t):
        mean, variance = self.mean[:, None, None], self.log_deviation.exp().square()[:, None, None]
        t = flow.time_like(t, x_t)
        gain = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
        return mean + gain * (x_t - (1 - t) * mean)


class GaussianTeacher:
    """Latents are pictures; the empty prompt's pictures are brighter by ``empty``."""

    name, empty = "gaussian", 0.4

    def __init__(self, transformer=None) -> None:
        self.transformer = transformer or Gaussian().requires_grad_(False)

    def with_transformer(self, transformer):
        return GaussianTeacher(transformer)

    def encode(self, images):
        return images

    def velocity(self, z_t, t, conditioning, guidance_scale=0.0):
        u = (z_t - self.transformer.x_0(z_t, t)) / flow.time_like(t, z_t)
        if not guidance_scale:
            return u
        moved = Gaussian([m + self.empty for m in MEAN], DEVIATION).requires_grad_(False)
        return u + guidance_scale * (u - (z_t - moved.x_0(z_t, t)) / flow.time_like(t, z_t))


def objective(lift, **knobs):
    return DistributionObjective(teacher=GaussianTeacher(), lift=lift, **knobs)


def drawn(context, gaussian, n=4000, **settings):
    noise = torch.randn(n, 3, 1, 1, generator=torch.Generator().manual_seed(3))
    mean, deviation = (torch.tensor(v)[:, None, None] for v in gaussian)
    return context(lambda x, t: mean + deviation * x, noise, noise, **settings)


def test_equal_distributions_do_not_move(context, lift):
    step = drawn(context, (MEAN, DEVIATION))
    built = objective(lift)  # the fake starts as the teacher
    assert not built.gradient(step, step.picture).any()


def test_the_direction_is_the_difference_of_the_scores(context, lift):
    """score of noised N(m, s^2): -(x_t - (1 - t) m) / ((1 - t)^2 s^2 + t^2); x_0 - guess = (t^2 score + ...) / (1 - t)."""
    step, built = drawn(context, ((0.9, 0.9, 0.9), DEVIATION), n=64), objective(lift)
    built.fake = Gaussian((0.9, 0.9, 0.9), (0.2, 0.5, 0.4))
    t = torch.rand(64, generator=torch.Generator().manual_seed(0)) * 0.96 + 0.02
    x = step.picture
    found = built.gradient(step, x)
    x_t = flow.add_noise(x, torch.randn(x.shape, generator=_after_times(64)), t)

    def score(mean, deviation):
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (mean, deviation))
        s = flow.time_like(t, x)
        return -(x_t - (1 - s) * mean) / ((1 - s) ** 2 * deviation**2 + s**2)

    s = flow.time_like(t, x)
    gap = s**2 / (1 - s) * (score((0.9, 0.9, 0.9), (0.2, 0.5, 0.4)) - score(MEAN, DEVIATION))
    real = GaussianTeacher().transformer.x_0(x_t, t)
    wanted = gap / (x - real).abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)


def _after_times(count):
    generator = torch.Generator().manual_seed(0)
    torch.rand(count, generator=generator)
    return generator


def test_the_fake_learns_the_student_s_own_score(context, lift):
    mean, deviation = (-0.4, 0.2, 0.7), (0.3, 0.9, 0.5)
    built = objective(lift)
    optimiser = torch.optim.LBFGS(built.fake.parameters(), lr=0.5, max_iter=20)

    def loss():
        optimiser.zero_grad()
        value = built.critic_loss(drawn(context, (mean, deviation), n=6000))["flow"]
        value.backward()
        return value

    optimiser.step(loss)
    assert torch.allclose(built.fake.mean, torch.tensor(mean), atol=0.04)
    assert torch.allclose(built.fake.log_deviation.exp(), torch.tensor(deviation), atol=0.04)


def test_a_generator_finds_the_teacher_s_mean_and_deviation(context, lift):
    """Student and fake in turns, from another Gaussian: to the teacher's within the noise of the last steps."""
    built = objective(lift, pixel_clip=0.0)
    mean, deviation = nn.Parameter(torch.zeros(3, 1, 1)), nn.Parameter(torch.full((3, 1, 1), 0.1))
    student = torch.optim.Adam([mean, deviation], 0.03, betas=(0.5, 0.9))
    critic = torch.optim.Adam(built.fake.parameters(), 0.05, betas=(0.0, 0.9))
    for i in range(150):
        noise = torch.randn(256, 3, 1, 1, generator=torch.Generator().manual_seed(i))
        step = context(lambda x, t: mean + deviation * x, noise, noise, seed=i)
        for _ in range(3):
            critic.zero_grad()
            built.critic_loss(step)["flow"].backward()
            critic.step()
        student.zero_grad()
        built(step)["gap"].backward()
        student.step()
        for group in (*student.param_groups, *critic.param_groups):
            group["lr"] *= 0.985
    assert torch.allclose(mean.flatten(), torch.tensor(MEAN), atol=0.06)
    assert torch.allclose(deviation.flatten(), torch.tensor(DEVIATION), atol=0.08)


@pytest.mark.parametrize("decoupled", [False, True])
def test_guidance_pushes_away_from_the_empty_prompt(context, lift, decoupled):
    """Alone (fake = teacher), guidance moves x against the way to the empty prompt's brighter pictures."""
    step = drawn(context, (MEAN, DEVIATION), n=64)
    direction = objective(lift, guidance_scale=2.0, decoupled=decoupled).gradient(step, step.picture)
    assert (direction > 0).all()  # descending it darkens
    double = objective(lift, guidance_scale=2.0, decoupled=decoupled)._guidance(step, step.picture)
    assert (double < 0).all()


def test_decoupled_guidance_stays_below_the_student_s_time(context, lift):
    step = drawn(context, (MEAN, DEVIATION), n=500, num_steps=4, seed=1)
    assert step.picture_time < 1
    built, seen = objective(lift, guidance_scale=1.0, decoupled=True), []
    velocity = built._score.velocity

    def spy(x_t, t, conditioning, guidance_scale=0.0, network=None):
        seen.append((float(t.max()), guidance_scale))
        return velocity(x_t, t, conditioning, guidance_scale, network)

    built._score.velocity = spy
    built.gradient(step, step.picture)
    assert [scale for _, scale in seen] == [0.0, 0.0, 0.0, 1.0]
    assert max(t for t, _ in seen[:2]) > 0.9 > step.picture_time >= max(t for t, _ in seen[2:])


def test_the_gradient_comes_back_through_the_encoder(context, lift):
    """encode averages 2 x 2 pixels: each gets a quarter of its cell's gradient, and is clipped by its own length."""
    teacher = GaussianTeacher()
    teacher.encode = lambda images: nn.functional.avg_pool2d(images, 2)
    built = DistributionObjective(teacher=teacher, lift=lift, pixel_clip=0.0)
    picture = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(5)).requires_grad_()
    step = context(lambda x, t: picture, torch.zeros(2, 3, 4, 4))
    built.gradient = lambda ctx, z: torch.arange(24.0).reshape(2, 3, 2, 2)
    built(step)["gap"].backward()
    wanted = nn.functional.interpolate(torch.arange(24.0).reshape(2, 3, 2, 2), scale_factor=2) / 4 / 24
    assert torch.allclose(picture.grad, wanted, atol=1e-6)


def test_in_latents_the_guess_follows_the_direction_as_it_is(context, lift):
    built = objective(lift, space="latents", pixel_clip=0.1)
    step = context(None, torch.zeros(2, 3, 4, 4))
    step.latents = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(5)).requires_grad_()
    direction = torch.arange(96.0).reshape(2, 3, 4, 4)
    built.gradient = lambda ctx, z: direction
    built(step)["gap"].backward()
    assert torch.allclose(step.latents.grad, direction / 96, atol=1e-6)


def test_no_pixel_is_longer_than_its_limit():
    gradient = torch.ones(2, 3, 8, 8) * 0.01
    gradient[0, :, 2, 3] = 5.0
    root = gradient.norm(dim=1).square().mean((1, 2)).sqrt()
    clipped = clip_pixels(gradient, 3.0)
    assert clipped[0, :, 2, 3].norm() == pytest.approx(3 * root[0].item(), rel=1e-5)
    clipped[0, :, 2, 3] = 5.0
    assert torch.equal(clipped, gradient) and clip_pixels(gradient, 0.0) is gradient
    assert clip_pixels(torch.zeros(1, 3, 2, 2), 3.0).isfinite().all()


def test_the_score_of_a_many_step_student_is_read_in_pixels(context, lift, monkeypatch):
    class Student(Gaussian):
        def forward(self, x_t, t, conditioning):
            return self.x_0(x_t, t)

    monkeypatch.setattr("l2p.students.io.load_student", lambda folder: Student())
    built = DistributionObjective(teacher=None, lift=lift, score="runs/many/student")
    assert isinstance(built._score, PixelScore) and all(p.requires_grad for p in built.fake.parameters())
    assert {name.split(".")[0] for name in built.state_dict()} == {"fake"}  # the frozen one is not kept
    step = drawn(context, (MEAN, DEVIATION), n=64)
    assert not built.gradient(step, step.picture).any()
    with torch.no_grad():
        built.fake.mean += 0.5
    assert (built.gradient(step, step.picture) > 0).all()


def test_wrong_combinations_are_one_line_before_anything_is_loaded(monkeypatch, tmp_path):
    from l2p.teachers import FAMILIES

    def check(recipe=None, **knobs):
        recipe = recipe or Recipe(name="x")
        check_combinations(StageConfig(objectives={"distribution": knobs}), recipe)

    check(guidance_scale=1.0, decoupled=True)
    with pytest.raises(UserError, match="decoupled parts guidance.*above 0"):
        check(decoupled=True)
    with pytest.raises(UserError, match="no student at"):
        check(score=str(tmp_path / "none"))
    monkeypatch.setattr("l2p.students.io.read_spec", lambda folder: SimpleNamespace(num_steps=1))
    with pytest.raises(UserError, match="one step and gives no score"):
        check(score="one")
    monkeypatch.setattr("l2p.students.io.read_spec", lambda folder: SimpleNamespace(num_steps=16))
    check(score="many")
    with pytest.raises(UserError, match="a student's score is one of pixels"):
        check(score="many", space="latents")
    with pytest.raises(UserError, match="guidance_scale needs score: teacher"):
        check(score="many", guidance_scale=1.0)
    monkeypatch.setitem(FAMILIES, "ZImagePipeline", SimpleNamespace(gives_score=False))
    with pytest.raises(UserError, match="needs a score, and teacher.path=landscapes gives none"):
        check()
    check(Recipe(name="x", teacher=TeacherConfig(path="someone/unknown")))  # known once it is fetched
