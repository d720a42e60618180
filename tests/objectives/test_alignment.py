from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from l2p.errors import UserError
from l2p.objectives import build_objectives, check_combinations
from l2p.objectives.alignment import alignment_loss
from l2p.recipe import Recipe, StageConfig
from l2p.teachers import load_teacher

NAME = "timm:test_vit@3=random"


def test_the_loss_is_one_minus_the_cosine_on_the_tokens_grid():
    generator = torch.Generator().manual_seed(0)
    tokens, wanted = (torch.randn(2, 4, 4, 8, generator=generator).double() for _ in range(2))
    cosine = (tokens * wanted).sum(-1) / tokens.norm(dim=-1) / wanted.norm(dim=-1)
    assert alignment_loss(tokens, wanted.movedim(-1, 1)).item() == pytest.approx(1 - cosine.mean().item())
    large = (
        wanted.movedim(-1, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    )  # constant over each token's cells
    near = alignment_loss(3 * wanted, large).item()
    assert near == pytest.approx(0, abs=0.25) and near < 0.5 * alignment_loss(tokens, large).item()
    flat = torch.ones(2, 8, 9, 9).double()
    assert alignment_loss(torch.ones(2, 4, 4, 8).double(), flat).item() == pytest.approx(0, abs=1e-9)


def test_core_and_projector_learn_it_each_by_its_own_gradient(tiny_pipeline, lift, context):
    teacher = load_teacher(tiny_pipeline)
    torch.manual_seed(0)
    options = {"alignment": {"features": NAME, "width": 32}}
    objective = build_objectives(options, teacher=teacher, lift=lift)["alignment"]
    dim = objective.projector[0].in_features
    assert dim == teacher.transformer.config.dim and objective.projector[-1].out_features == 64
    features = torch.randn(2, 4, 4, dim, generator=torch.Generator().manual_seed(1), requires_grad=True)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    ctx = SimpleNamespace(core_features=features, batch=SimpleNamespace(images=images))
    objective(ctx)["cosine"].backward()
    assert features.grad.abs().sum() > 0 and all(p.grad is None for p in objective.parameters())
    features.grad = None
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    found = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective.critic_loss(ctx)["loss"]
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert features.grad is None and found[-1] < 0.5 * found[0]


@pytest.mark.parametrize(
    ("options", "student", "message"),
    [
        ({"features": "transformer"}, {}, "is what the core began as"),
        ({"features": NAME}, {"core": "tiny"}, "leave student.core out"),
        ({"features": "timm:nothing_of_that_name"}, {}, "timm has no model"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(options, student, message):
    recipe = Recipe(name="x")
    for key, value in student.items():
        setattr(recipe.student, key, value)
    with pytest.raises(UserError, match=message):
        check_combinations(StageConfig(objectives={"alignment": options}), recipe)
