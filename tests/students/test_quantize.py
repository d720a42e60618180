"""Quantised students: eight bits in the core's linear layers, the head untouched, strict on the way back."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from l2p.artifacts import hash_tensors
from l2p.errors import UserError
from l2p.students.build import from_teacher
from l2p.students.io import load_student, save_student, tensors_of
from l2p.students.pipeline import load
from l2p.students.quantize import quantize

pytest.importorskip("torchao")


@pytest.fixture
def student(teacher, lift, student_config, randomised):
    return randomised(from_teacher(teacher, lift, student_config("patch"), (32, 48)), 0.02).eval()


@pytest.mark.parametrize(
    ("kind", "stored", "most"), [("int8", torch.int8, 0.5 / 127), ("fp8", torch.float8_e4m3fn, 1 / 16)]
)
def test_the_core_has_eight_bits_and_the_head_has_not(student, captions, tmp_path, kind, stored, most):
    before = {name: w.detach().clone() for name, w in student.named_parameters()}
    linears = {f"core.{n}.weight" for n, m in student.core.named_modules() if isinstance(m, nn.Linear)}
    quantize(student, kind)
    save_student(student, tmp_path / "a")
    state = load_file(tmp_path / "a" / "model.safetensors")
    for name in linears:
        module, _, last = name.rpartition(".")
        rounded, scale = state[f"{module}._{last}_qdata"], state[f"{module}._{last}_scale"]
        assert rounded.dtype == stored
        weight = before[name].bfloat16().float()
        unit = (
            weight.abs().amax(1, keepdim=True)
            if kind == "int8"
            else weight.abs() + 2e-3 * weight.abs().amax(1, keepdim=True)
        )
        assert ((rounded.float() * scale.float() - weight).abs() <= 1.1 * most * unit).all(), name
    heads = {name: w for name, w in before.items() if name.startswith("head.")}
    assert heads and all(torch.equal(state[name], w.bfloat16()) for name, w in heads.items())
    again = load_student(tmp_path / "a")
    assert again.quantization == {"kind": kind}
    kept = {name: state[name] for name in tensors_of(again)}
    assert hash_tensors(tensors_of(again)) == hash_tensors(kept)  # as an evaluation asks for it
    inputs = torch.randn(1, 3, 32, 48), torch.ones(1), captions([7])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(again(*inputs), student(*inputs))


def test_mistakes_and_broken_files(student, teacher, tmp_path):
    with pytest.raises(UserError, match="expected one of int8, fp8"):
        quantize(student, "int3")
    quantize(student, "int8")
    with pytest.raises(UserError, match="already"):
        quantize(student, "int8")
    with pytest.raises(UserError, match="keeps its number formats"):
        save_student(student, tmp_path / "a", dtype="fp16")
    save_student(student, tmp_path / "a", teacher.text_encoder)
    with pytest.raises(UserError, match="computes in bf16"):
        load(tmp_path / "a", "cpu", "fp32")
    (tmp_path / "a" / "checksums.json").unlink()  # which would refuse them all
    path = tmp_path / "a" / "model.safetensors"
    good = load_file(path)
    key = next(name for name in good if name.endswith("_qdata"))
    scale = key.replace("_qdata", "_scale")
    for state, said in (
        ({**good, key: good[key].float()}, "wrong dtype"),
        ({**good, scale: good[scale] * torch.nan}, "not finite"),
        ({k: v for k, v in good.items() if k != scale}, "missing"),
    ):
        save_file(state, path)
        with pytest.raises(UserError, match=said):
            load_student(tmp_path / "a")
    save_file(good, path)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    for quantization in ("int8", {"kind": "int3"}, {}):
        (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "quantization": quantization}))
        with pytest.raises(UserError, match="quanti"):
            load_student(tmp_path / "a")
