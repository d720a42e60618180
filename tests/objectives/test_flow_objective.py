from __future__ import annotations

import pytest
import torch

from l2p import flow
from l2p.objectives.flow import FlowObjective


def test_the_optimum_of_a_linear_student_is_the_posterior_mean(context, teacher, lift):
    """Gaussian data at one time: E[x_0 | x_t] = mu + (1 - t) S ((1 - t)^2 S + t^2 I)^-1 (x_t - (1 - t) mu)."""
    torch.manual_seed(0)
    n, t = 60_000, 0.6
    mean = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64)
    root = torch.tensor([[0.8, 0.0, 0.0], [0.5, 0.4, 0.0], [-0.2, 0.3, 0.2]], dtype=torch.float64)
    covariance = root @ root.T
    images = (mean + torch.randn(n, 3, dtype=torch.float64) @ root.T)[..., None, None]
    weight = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def student(x_t, t):
        return torch.einsum("oi,bihw->bohw", weight, x_t) + bias[:, None, None]

    logit = torch.logit(torch.tensor(t)).item()
    objective = FlowObjective(teacher=teacher, lift=lift, shift=1.0, mean=logit, std=0.0)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = objective(context(student, images))["velocity"]  # the same noise each time: a fixed quadratic
        value.backward()
        return value

    optimiser.step(loss)
    gain = (1 - t) * covariance @ torch.linalg.inv((1 - t) ** 2 * covariance + t**2 * torch.eye(3))
    assert (weight - gain).abs().max() < 0.02
    assert (bias - (mean - (1 - t) * gain @ mean)).abs().max() < 0.02


@pytest.mark.parametrize("t", [0.5, 0.01])
def test_the_velocity_weight_is_bounded_near_the_clean_end(context, teacher, lift, t):
    logit = torch.logit(torch.tensor(t)).item()
    images = torch.zeros(2, 3, 4, 4)
    knobs = {"teacher": teacher, "lift": lift, "shift": 1.0, "mean": logit, "std": 0.0}
    step = context(lambda x_t, t: torch.full_like(x_t, 0.1), images)
    assert FlowObjective(**knobs)(step)["velocity"].item() == pytest.approx(
        0.01 / max(t, 0.05) ** 2, rel=1e-4
    )
    assert FlowObjective(**knobs, weighting="x_0")(step)["x_0"].item() == pytest.approx(0.01, rel=1e-4)


def test_times_are_shifted_logit_normals_and_noise_is_fresh_or_the_pairs_own(context, teacher, lift):
    seen = {}

    def student(x_t, t):
        seen.update(x_t=x_t, t=t)
        return x_t

    images = torch.zeros(4000, 3, 1, 1)
    step = context(student, images)
    FlowObjective(teacher=teacher, lift=lift, shift=3.0, noise="coupled")(step)
    assert torch.allclose(seen["x_t"], flow.time_like(seen["t"], images) * step.batch.noise)
    logits = torch.logit(flow.shift_time(seen["t"].double(), 1 / 3))
    assert abs(logits.mean()) < 0.06 and abs(logits.std() - 1) < 0.05
    FlowObjective(teacher=teacher, lift=lift)(context(student, images))
    assert (seen["x_t"] * step.batch.noise).mean().abs() < 0.05


def test_a_step_is_a_function_of_its_generator(context, teacher, lift):
    objective = FlowObjective(teacher=teacher, lift=lift)
    values = [objective(context(lambda x, t: x, seed=seed))["velocity"].item() for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
