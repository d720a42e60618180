"""A step's batch in parts: the terms' mean over the parts is the whole's, and so is the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from l2p import distributed
from l2p.objectives import OBJECTIVES, StepContext
from l2p.objectives.base import BatchShard
from l2p.objectives.drift import drift_loss

COUNT = 4
KNOBS = {
    "pairs": {"perceptual_fraction": 0.25, "noise": "fresh"},
    "flow": {},
    "drift": {},
    "adversarial": {"width": 4},
    "mean_flow": {"power": 0.0},
}


class Affine(nn.Module):
    """A student with two weights that answers by noise and time."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.6, -0.3]))

    def forward(self, x_t, t):
        return self.weights[0] * x_t.tanh() + self.weights[1] * t.view(-1, 1, 1, 1)


def part_of(whole: StepContext, share: BatchShard) -> StepContext:
    seed = torch.Generator().manual_seed(0)
    batch = whole.batch[share.of(COUNT)]
    return StepContext(whole.student, whole.teacher, whole.lift, batch, seed, share=share)


@pytest.mark.parametrize("name", KNOBS)
def test_parts_make_the_whole(name, context, teacher, lift, monkeypatch):
    student = Affine()
    torch.manual_seed(0)
    objective = OBJECTIVES[name](teacher=teacher, lift=lift, **KNOBS[name])
    for parameter in objective.parameters():  # a fresh critic answers zero to all
        nn.init.normal_(parameter, std=0.3)

    def answer(ctx: StepContext) -> tuple[dict, torch.Tensor]:
        terms = objective.critic_loss(ctx) if hasattr(objective, "critic_loss") else {}
        terms |= objective(ctx)
        student.weights.grad = None
        sum(terms.values()).backward()
        return {k: float(v.detach()) for k, v in terms.items()}, student.weights.grad.clone()

    terms, gradient = answer(context(student))

    # What each part shows to the others: gathered from the parts one after the other, then handed to each.
    shown: list[list[torch.Tensor]] = [[], []]
    shares = [BatchShard(0, 2), BatchShard(1, 2)]
    for share, seen in zip(shares, shown, strict=True):
        with monkeypatch.context() as patch:

            def show(x, dim, seen=seen):
                seen.append(x.detach())
                return torch.cat([x, x], dim).detach()

            patch.setattr(distributed, "gather", show)
            answer(part_of(context(student), share))
    answers = []
    for share in shares:
        pairs = iter(zip(*shown, strict=True))
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "gather", lambda x, dim, pairs=pairs: torch.cat(next(pairs), dim))
            answers.append(answer(part_of(context(student), share)))
    for term, value in terms.items():
        halves = [found[0][term] for found in answers]
        assert value == pytest.approx(sum(halves) / 2, rel=1e-5), term
    assert torch.allclose(gradient, sum(found[1] for found in answers) / 2, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(
        answers[0][1], answers[1][1], rtol=1e-3
    )  # the parts differ, their mean does not


def test_a_part_without_a_chosen_picture_counts_for_nothing(context):
    fractions = [part_of(context(Affine()), BatchShard(i, 2)).random_subset(0.25) for i in range(2)]
    assert sorted(len(some) for some, _ in fractions) == [0, 1]
    assert sorted(factor for _, factor in fractions) == [0.0, 2.0]
    assert context(Affine()).random_subset(1.0) == (slice(None), 1.0)


def test_drifting_needs_the_whole_crowd():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, COUNT, 5, generator=generator) for _ in range(2))
    x.requires_grad_()
    halves = [(BatchShard(i, 2), BatchShard(i, 2).of(COUNT)) for i in range(2)]

    def slope(*losses: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(sum(losses) / len(losses), x)[0]  # its value is 1 whatever the field

    whole = slope(drift_loss(x, y, (0.1,)))
    shared = slope(*(drift_loss(x[:, place], y, (0.1,), x, share) for share, place in halves))
    blind = slope(*(drift_loss(x[:, place], y[:, place], (0.1,)) for _, place in halves))
    assert torch.allclose(whole, shared, atol=1e-7)
    assert not torch.allclose(whole, blind, atol=1e-2)
