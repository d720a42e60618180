"""Mean flow where the average velocity is known: Gaussian data; and its derivative against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from l2p import flow
from l2p.errors import UserError
from l2p.lift import fit_lift
from l2p.objectives import check_combinations
from l2p.objectives.mean_flow import MeanFlowObjective, mean_velocity_slope
from l2p.recipe import HeadConfig, Recipe, StageConfig, StudentConfig
from l2p.runtime import autocast

MEAN, DEVIATION = 0.4, 0.6


def deviation_at(t):
    return ((1 - t) ** 2 * DEVIATION**2 + t**2).sqrt()


def exact(x_t, t, r):
    """x_0 of the average velocity of N(MEAN, DEVIATION^2): the flow keeps (x_t - (1 - t) mean) / deviation_t."""
    t, r = (time.reshape(-1, 1, 1, 1) for time in (t, r))
    moved = (1 - r) * MEAN + deviation_at(r) / deviation_at(t) * (x_t - (1 - t) * MEAN)
    at_once = x_t - t * instant(x_t, t)
    average = x_t - t * (x_t - moved) / torch.where(t > r, t - r, torch.ones_like(t))
    return torch.where(t > r, average, at_once)


def instant(x_t, t):
    """The flow's velocity: mean' + deviation' / deviation (x_t - mean_t)."""
    slope = (-(1 - t) * DEVIATION**2 + t) / deviation_at(t) ** 2
    return -MEAN + slope * (x_t - (1 - t) * MEAN)


def points(n=64):
    generator = torch.Generator().manual_seed(0)
    r, t = (torch.rand(2, n, generator=generator, dtype=torch.float64) * 0.85 + 0.1).sort(0).values
    return torch.randn(n, 1, 2, 2, generator=generator, dtype=torch.float64), r, t


def test_the_exact_average_velocity_satisfies_the_identity():
    """u + (t - r) du/dt is the flow's velocity at x_t, for every r and t: the objective's fixed point."""
    x_t, r, t = points()
    slope = mean_velocity_slope(exact, x_t.float(), r.float(), t.float(), t_min=0.01)
    u = flow.velocity_from_x_0(x_t, exact(x_t, t, r), t, 0.01)
    compound = u + flow.time_like(t - r, u) * slope
    assert torch.allclose(compound, instant(x_t, t.reshape(-1, 1, 1, 1)), atol=1e-4)


def test_a_wrong_student_is_moved_and_the_exact_one_is_not(context, teacher, lift):
    """Gaussian data, and a student off by a factor on what it moves: the gradient is zero at 1 and turns it back."""
    n = 30_000
    images = MEAN + DEVIATION * torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    objective = MeanFlowObjective(teacher=teacher, lift=lift, power=0.0, shift=1.0, t_min=0.01)

    def gradient(value):
        factor = torch.tensor(value, requires_grad=True)
        step = context(None, images, noise)
        step.student = lambda x, t, _, r: x + factor * (exact(x, t, r) - x)
        objective(step)["velocity"].backward()
        return factor.grad.item()

    assert abs(gradient(1.0)) < 0.02
    assert gradient(0.7) < -0.1 and gradient(1.3) > 0.1


def test_one_step_of_the_exact_student_is_the_flow_s_own_map():
    """From noise at t = 1 to r = 0: mean + deviation eps, of which the many-step Euler is the limit."""
    eps = torch.randn(8, 1, 2, 2, dtype=torch.float64)
    ones = torch.ones(8, dtype=torch.float64)
    assert torch.allclose(exact(eps, ones, 0 * ones), MEAN + DEVIATION * eps)
    times = torch.linspace(1, 0, 2001, dtype=torch.float64)
    walked = flow.euler(lambda x, t: instant(x, t.reshape(-1, 1, 1, 1)), eps, times)
    assert torch.allclose(walked, MEAN + DEVIATION * eps, atol=2e-3)


@pytest.fixture(scope="module")
def student(tiny_pipeline):
    """A real small student with interval, its zero weights replaced, gradient checkpointing on."""
    from l2p.patches import patchify
    from l2p.students.build import from_teacher
    from l2p.teachers import load_teacher

    teacher = load_teacher(tiny_pipeline)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 64, 64, generator=generator) * 2 - 1
    with torch.no_grad():
        z = teacher.pack(teacher.encode(images)).flatten(0, 2)
    lift = fit_lift(patchify(images, 16).flatten(0, 2), z)
    head = HeadConfig(fine_patch=8, width=32, num_blocks=1, head_dim=16, tile=4, halo=2)
    built = from_teacher(
        teacher, lift, StudentConfig(interval=True, gradient_checkpointing=True, head=head), (64, 64)
    )
    torch.manual_seed(1)
    for parameter in built.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return built.float(), teacher.encode_prompts(["a house", "a long river by three trees", "snow"])


def call(student):
    network, conditioning = student
    return lambda x, t, r: network(x, t, conditioning, r)


def steps(n=3):
    generator = torch.Generator().manual_seed(4)
    x_t = torch.randn(n, 3, 64, 64, generator=generator)
    return x_t, torch.tensor([0.1, 0.3, 0.0]), torch.tensor([0.5, 0.9, 0.7])


def difference(student, h=1e-4):
    """du/dt along the student's velocity by central differences; the time embedding turns by 1000 t, so h is small."""
    x_t, r, t = steps()
    with torch.no_grad():
        v = flow.velocity_from_x_0(x_t, student(x_t, t, t), t)
        ahead, behind = (
            flow.velocity_from_x_0(x_t + s * v, student(x_t + s * v, t + s, r), t + s) for s in (h, -h)
        )
    return (ahead - behind) / (2 * h)


def test_the_derivative_is_that_of_finite_differences(student):
    network = call(student)
    found = mean_velocity_slope(network, *steps(), t_min=0.05)
    wanted = difference(network)
    assert wanted.norm() > 1 and (found - wanted).norm() < 0.02 * wanted.norm()
    assert found.dtype == torch.float32 and not found.requires_grad


def test_the_derivative_works_under_bf16_autocast(student):
    network = call(student)
    with autocast("cpu", torch.bfloat16):
        found = mean_velocity_slope(network, *steps(), t_min=0.05)
    wanted = difference(network)
    assert (found - wanted).norm() < 0.15 * wanted.norm()  # bf16 keeps eight bits of each product


def test_the_student_learns_through_checkpoints_and_is_told_the_end(student, context, teacher, lift):
    network, conditioning = student
    step = context(None, torch.rand(3, 3, 64, 64) * 2 - 1, torch.randn(3, 3, 64, 64))
    step.student, step.batch.conditioning = network, conditioning
    objective = MeanFlowObjective(teacher=teacher, lift=lift, perceptual=0.5)
    terms = objective(step)
    assert set(terms) == {"velocity", "perceptual"}
    sum(terms.values()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in network.core.span_embedder.parameters()
    )
    x_t, r, t = steps()
    with torch.no_grad():
        assert not torch.allclose(network(x_t, t, conditioning, r), network(x_t, t, conditioning), atol=1e-4)


def test_pairs_of_times_fill_the_triangle(context, teacher, lift):
    objective = MeanFlowObjective(teacher=teacher, lift=lift, equal=0.25)
    r, t = objective.times(context(None), 20_000)
    assert (r <= t).all() and r.min() < 0.05 and t.max() > 0.98
    assert (r == t).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_wrong_combinations_are_refused():
    stage = StageConfig(objectives={"mean_flow": {}})
    with pytest.raises(UserError, match="set student.interval=true"):
        check_combinations(stage, Recipe(name="x"))
    check_combinations(stage, Recipe(name="x", student=StudentConfig(interval=True)))
    unet = StudentConfig(interval=True, head=HeadConfig(kind="unet"))
    with pytest.raises(UserError, match="student.head.kind to patch"):
        check_combinations(stage, Recipe(name="x", student=unet))
