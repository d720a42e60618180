"""LoRA adapters: nothing at step zero, they alone train of the core, and they come and go without a trace."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from l2p.errors import UserError
from l2p.recipe import load_recipe
from l2p.students.build import from_teacher, set_trainable
from l2p.students.io import load_student, save_student
from l2p.students.lora import ADAPTER, ADAPTER_CONFIG, add_lora, is_adapter, lora_of, merged

pytest.importorskip("peft")
LORA = {"rank": 4, "alpha": 8.0, "targets": ["to_q", "to_out.0", "w2"]}


@pytest.fixture
def student(teacher, lift, student_config, randomised):
    return randomised(from_teacher(teacher, lift, student_config("patch"), (32, 48)), 0.02).eval()


def draw(student, inputs):
    with torch.no_grad():
        return student(*inputs)


@pytest.fixture
def inputs(student):
    from l2p.teachers.protocol import Conditioning

    generator = torch.Generator().manual_seed(0)
    width = student.core.transformer.config.cap_feat_dim
    embeds = torch.randn(2, 7, width, generator=generator)
    noise = torch.randn(2, 3, 32, 48, generator=generator)
    return noise, torch.tensor([1.0, 0.4]), Conditioning(embeds, torch.tensor([7, 7]))


def shake(student) -> None:
    """Adapters as a training leaves them: both factors are there."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if is_adapter(name):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_adapters_start_at_nothing_and_merge_without_a_trace(student, inputs):
    before = draw(student, inputs)
    weight = student.core.layers[0].attention.to_q.weight.detach().clone()
    add_lora(student, **LORA)
    assert torch.equal(draw(student, inputs), before)
    shake(student)
    unmerged = draw(student, inputs)
    assert (unmerged - before).abs().max() > 1e-2
    layer = student.core.layers[0].attention.to_q
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # alpha / rank = 2
    plain = merged(student)
    assert lora_of(plain) is None and not any(is_adapter(name) for name in plain.state_dict())
    torch.testing.assert_close(plain.core.layers[0].attention.to_q.weight, weight + 2 * product)
    torch.testing.assert_close(draw(plain, inputs), unmerged, rtol=1e-5, atol=1e-5)


def test_adapters_and_head_alone_train(student, inputs):
    add_lora(student, **LORA)
    shake(student)
    set_trainable(student, "all")
    student(*inputs).square().mean().backward()
    moved = {name for name, p in student.named_parameters() if p.grad is not None}
    core = {name for name in moved if name.startswith("core.")}
    assert core and all(is_adapter(name) for name in core)
    assert moved - core == {name for name, _ in student.named_parameters() if name.startswith("head.")}


def test_adapters_lie_apart_and_come_back(student, inputs, tmp_path):
    base = {name: v.clone() for name, v in student.state_dict().items()}
    add_lora(student, **LORA)
    shake(student)
    save_student(student, tmp_path / "a")
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert stored.keys() == base.keys() and all(torch.equal(stored[name], base[name]) for name in base)
    assert json.loads((tmp_path / "a" / ADAPTER_CONFIG).read_text())["peft_type"] == "LORA"
    again = load_student(tmp_path / "a")
    assert lora_of(again) == LORA | {"targets": sorted(LORA["targets"])}
    assert torch.equal(draw(again, inputs), draw(student, inputs))
    save_student(again, tmp_path / "half", dtype="bf16")
    assert {p.dtype for p in load_student(tmp_path / "half").parameters()} == {torch.bfloat16}
    save_student(merged(again), tmp_path / "a")
    assert not (tmp_path / "a" / ADAPTER).exists() and lora_of(load_student(tmp_path / "a")) is None


def test_broken_adapters_are_named(student, tmp_path):
    add_lora(student, **LORA)
    save_student(student, tmp_path)
    (tmp_path / "checksums.json").unlink()
    good = load_file(tmp_path / ADAPTER)
    first = next(iter(good))
    for state, said in (
        ({**good, "more": torch.zeros(1)}, "unexpected: more"),
        ({k: v for k, v in good.items() if k != first}, "missing: "),
        ({**good, first: good[first] * torch.nan}, "not finite"),
        ({**good, first: torch.zeros(3, 3)}, "misshapen"),
    ):
        save_file(state, tmp_path / ADAPTER)
        with pytest.raises(UserError, match=said):
            load_student(tmp_path)
    (tmp_path / ADAPTER).unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors is missing"):
        load_student(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for lora in ({"rank": -1, "alpha": 1, "targets": ["to_q"]}, "yes", {"rank": 4}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "lora": lora}))
        with pytest.raises(UserError, match="expected a rank"):
            load_student(tmp_path)


def test_a_recipe_names_them(student, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: a\nstudent: {lora: {rank: 2}}\n")
    lora = load_recipe(recipe).student.lora
    assert lora.rank == 2 and "to_q" in lora.targets
    recipe.write_text("name: a\n")
    assert load_recipe(recipe).student.lora is None
    for text, said in (
        ("{lora: {rnk: 2}}", "did you mean student.lora.rank"),
        ("{lora: {rank: 0}}", "student.lora.rank"),
        ("{lora: {rank: 2}, train_blocks: {first: 1}}", "freezes the whole core"),
        ("{lora: 3}", "expected a section"),
    ):
        recipe.write_text(f"name: a\nstudent: {text}\n")
        with pytest.raises(UserError, match=said):
            load_recipe(recipe)
    with pytest.raises(UserError, match="'q_proj', which no linear layer"):
        add_lora(student, 2, 2.0, ["q_proj"])
