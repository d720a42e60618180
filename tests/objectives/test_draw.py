"""The one picture that all objectives share: of one step, and of several."""

from __future__ import annotations

import pytest
import torch


def test_one_step_is_the_student_told_pure_noise(context):
    seen = []
    step = context(lambda x, t: seen.append((x, t)) or x / 2)
    state = step.generator.get_state()
    assert torch.equal(step.picture, step.batch.noise / 2) and step.picture_time == 1
    assert len(seen) == 1 and torch.equal(seen[0][1], torch.ones(4))
    assert torch.equal(step.generator.get_state(), state)  # one step draws no random number


@pytest.mark.parametrize("num_steps", [2, 4])
def test_several_steps_meet_what_sampling_meets(context, num_steps):
    """The step drawn sees the very x_t at which the student's own sampling arrives; its own step alone has a gradient."""
    weight = torch.tensor(0.7, requires_grad=True)
    seen, times = [], set()

    def student(x, t):
        seen.append((x.detach(), float(t[0])))
        return weight * x

    for seed in range(12):
        seen.clear()
        step = context(student, seed=seed, num_steps=num_steps)
        picture = step.picture
        times.add(step.picture_time)
        assert [t for _, t in seen] == pytest.approx([1 - i / num_steps for i in range(len(seen))])
        x = step.batch.noise
        for i in range(len(seen) - 1):  # x <- x - (x - x_0) / (steps left)
            x = x - (x - 0.7 * x) / (num_steps - i)
        assert torch.allclose(seen[-1][0], x, atol=1e-6)
        (gradient,) = torch.autograd.grad(picture.sum(), weight)
        assert gradient.item() == pytest.approx(x.sum().item(), rel=1e-3)
    assert sorted(times) == pytest.approx([(i + 1) / num_steps for i in range(num_steps)])
