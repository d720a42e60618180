"""Low-rank changes: nothing at first, the rank asked for, frozen weights, and a plain student in the end."""

from __future__ import annotations

import torch
from torch import nn

from l2p.recipe import TrainBlocks
from l2p.students.build import from_teacher
from l2p.students.lora import LowRank, add_lora, merge_lora


def test_a_layer_changes_by_at_most_the_rank_and_merges_to_the_same():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(12, 10))
    before, x = layer[0].weight.detach().clone(), torch.randn(5, 12)
    plain = layer(x).detach()
    layer.requires_grad_(False)
    add_lora(layer, 3)
    assert torch.equal(layer(x), plain)
    optimiser = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], 0.5)
    for _ in range(3):
        optimiser.zero_grad()
        layer(x).square().sum().backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimiser.step()
    moved = layer(x).detach()
    assert not torch.allclose(moved, plain, atol=1e-3)
    merge_lora(layer)
    assert set(layer.state_dict()) == {"0.weight", "0.bias"} and torch.allclose(layer(x), moved, atol=1e-6)
    assert torch.linalg.matrix_rank(layer[0].weight.detach() - before, atol=1e-5) == 3


def test_a_student_s_blocks_between_get_it(teacher, lift, captions, student_config):
    student = from_teacher(teacher, lift, student_config("linear", train_blocks=TrainBlocks(first=1, lora=2)))
    changes = [name for name, module in student.named_modules() if isinstance(module, LowRank)]
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in changes}
    assert layers == set(range(1, len(student.core.layers)))
    frozen = {n for n, p in student.named_parameters() if not p.requires_grad}
    assert frozen and all("layers." in n and "layers.0." not in n for n in frozen)
    plain = from_teacher(teacher, lift, student_config("linear"))
    assert set(merge_lora(student).state_dict()) == set(plain.state_dict())


def test_a_random_core_is_not_the_teacher_s_and_draws_finite_pictures(
    teacher, lift, captions, student_config
):
    torch.manual_seed(0)
    student = from_teacher(teacher, lift, student_config("patch", random_core=True))
    own, other = student.core.transformer.state_dict(), teacher.transformer.state_dict()
    same = [n for n in own.keys() & other.keys() if own[n].ndim == 2 and torch.equal(own[n], other[n])]
    assert {n for n in same if "pad_token" not in n} == set()
    assert student.sample(torch.randn(1, 3, 64, 64), captions([5]), 1).isfinite().all()
