"""Students that leave as students: adapters merged, cores quantised, and the card that says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from l2p.hub.fetch import pull
from l2p.students.io import load_student, save_student
from l2p.students.lora import ADAPTER, ADAPTER_CONFIG, add_lora, is_adapter, lora_of
from l2p.students.pipeline import load
from l2p.teachers.protocol import Conditioning


def test_a_quantised_student_says_what_that_cost(l2p, hub, run_folder, tmp_path):
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
    code, _, err = l2p("push", out, "ann/int8")  # quantised already
    assert code == 0, err
    again = pull("ann/int8")
    assert again.joinpath("README.md").read_text() == card.replace('l2p.load("int8")', 'l2p.load("ann/int8")')
    assert np.array_equal(*(np.asarray(load(p, "cpu").generate("a lake", seeds=3)[0]) for p in (out, again)))
    code, _, err = l2p("export", out, "--to", "diffusers", tmp_path / "b")
    assert code == 2 and "is quantised" in err and not (tmp_path / "b").exists()


def test_quantised_on_its_way_to_the_hub(l2p, hub, run_folder):
    pytest.importorskip("torchao")
    code, _, err = l2p("push", run_folder / "student", "ann/tiny", "--quantize", "int3")
    assert code == 2 and "expected one of int8, fp8" in err and not hub.repos
    code, _, err = l2p("push", run_folder / "student", "ann/tiny", "--quantize", "fp8")
    assert code == 0, err
    sent = hub.repos["ann/tiny"].files("main")[1]
    quantization = json.loads(sent["config.json"])["quantization"]
    assert (
        quantization["kind"] == "fp8" and f"PSNR {quantization['psnr']:.1f} dB" in sent["README.md"].decode()
    )
    assert (
        len(sent["model.safetensors"]) < 0.8 * (run_folder / "student" / "model.safetensors").stat().st_size
    )
    assert load(pull("ann/tiny"), "cpu").student.quantization == quantization


def test_adapters_are_published_apart_and_merge(l2p, hub, run_folder, tmp_path):
    pytest.importorskip("peft")
    student = load_student(run_folder / "student")
    add_lora(student, 2, 4.0, ["to_q", "w2"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if is_adapter(name):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_student(student, tmp_path / "lora", load(run_folder / "student", "cpu", "fp32").text_encoder)
    code, _, err = l2p("push", tmp_path / "lora", "ann/lora")
    assert code == 0, err
    pulled = pull("ann/lora")
    for name in (ADAPTER, ADAPTER_CONFIG):
        assert (pulled / name).read_bytes() == (tmp_path / "lora" / name).read_bytes()
    assert "adapters of rank 2 and alpha 4" in (pulled / "README.md").read_text()
    code, _, err = l2p("export", "ann/lora", "--to", "merged", tmp_path / "merged")
    assert code == 0, err
    plain = load_student(tmp_path / "merged")
    assert lora_of(plain) is None and not (tmp_path / "merged" / ADAPTER).exists()
    width = plain.core.transformer.config.cap_feat_dim
    inputs = torch.randn(1, 3, 32, 48), Conditioning(torch.randn(1, 7, width), torch.tensor([7]))
    torch.testing.assert_close(plain.sample(*inputs), student.sample(*inputs), rtol=1e-5, atol=1e-5)
