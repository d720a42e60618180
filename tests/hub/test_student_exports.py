"""Students that leave as students: adapters merged, cores quantised, and the card that says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from l2p.hub.stage import stage
from l2p.students.io import load_student, save_student
from l2p.students.lora import ADAPTER, ADAPTER_CONFIG, add_lora, is_adapter, lora_of
from l2p.students.pipeline import load
from l2p.teachers.protocol import Conditioning


def test_a_quantised_student_says_what_that_cost(l2p, run_folder, tmp_path):
    pytest.importorskip("torchao")
    out = tmp_path / "int8"
    code, _, err = l2p("export", run_folder / "student", "--to", "int8", out)
    assert code == 0, err
    figures = json.loads((out / "config.json").read_text())["quantization"]
    assert figures["kind"] == "int8" and figures["num_images"] == 16
    card = (out / "README.md").read_text()
    assert f"PSNR {figures['psnr']:.1f} dB" in card and "before it was quantised" in card
    assert "I8" in card.split("Weights in memory")[1][:80]
    plain, small = (load(folder, "cpu", "bf16") for folder in (run_folder / "student", out))
    a, b = (
        np.asarray(p.generate("a red house by a lake at dusk", seeds=8000)[0]) / 255 for p in (plain, small)
    )
    assert -10 * np.log10(np.square(a - b).mean()) >= figures["psnr_worst"] - 0.01
    assert stage(out, tmp_path / "again").joinpath("README.md").read_text() == card
    code, _, err = l2p("export", out, "--to", "diffusers", tmp_path / "b")
    assert code == 2 and "is quantised" in err and not (tmp_path / "b").exists()
    code, _, err = l2p("push", run_folder / "student", "ann/tiny", "--dry-run", "--quantize", "int3")
    assert code == 2 and "expected one of int8, fp8" in err


def test_adapters_are_published_apart_and_merge(l2p, run_folder, tmp_path):
    pytest.importorskip("peft")
    student = load_student(run_folder / "student")
    add_lora(student, 2, 4.0, ["to_q", "w2"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if is_adapter(name):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_student(student, tmp_path / "lora", load(run_folder / "student", "cpu", "fp32").text_encoder)
    staged = stage(tmp_path / "lora", tmp_path / "staged")
    assert (staged / ADAPTER).is_file() and (staged / ADAPTER_CONFIG).is_file()
    assert "adapters of rank 2 and alpha 4" in (staged / "README.md").read_text()
    code, _, err = l2p("export", staged, "--to", "merged", tmp_path / "merged")
    assert code == 0, err
    plain = load_student(tmp_path / "merged")
    assert lora_of(plain) is None and not (tmp_path / "merged" / ADAPTER).exists()
    width = plain.core.transformer.config.cap_feat_dim
    inputs = torch.randn(1, 3, 32, 48), Conditioning(torch.randn(1, 7, width), torch.tensor([7]))
    torch.testing.assert_close(plain.sample(*inputs), student.sample(*inputs), rtol=1e-5, atol=1e-5)
