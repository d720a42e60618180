"""LoRA files of every format give the update that their factors say, or one line that says why not."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from l2p.errors import UserError
from l2p.students.build import from_teacher
from l2p.students.external_lora import find_lora, merge_loras, parse_lora

RANK, ALPHA, WEIGHT = 4, 8.0, 0.5
BLOCK = "layers.0"
LAYERS = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0", "feed_forward.w2")


@pytest.fixture
def student(teacher, lift, student_config):
    return from_teacher(teacher, lift, student_config("patch"), (32, 48)).eval()


@pytest.fixture
def factors(student):
    """Name of a layer -> (down [rank, in], up [out, rank]); the attention's inputs share one ``down``, as fused ones do."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: student.core.transformer.get_submodule(f"{BLOCK}.{name}").weight.shape for name in LAYERS}
    made = {
        name: (
            torch.randn(RANK, shape[1], generator=generator),
            torch.randn(shape[0], RANK, generator=generator),
        )
        for name, shape in shapes.items()
    }
    for name in ("attention.to_k", "attention.to_v"):
        made[name] = (made["attention.to_q"][0], made[name][1])
    return {f"{BLOCK}.{name}": pair for name, pair in made.items()}


def peft(factors, folder):
    folder.mkdir()
    state = {}
    for name, (down, up) in factors.items():
        state[f"base_model.model.{name}.lora_A.weight"], state[f"base_model.model.{name}.lora_B.weight"] = (
            down,
            up,
        )
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "adapter_model.safetensors")
    config = {"r": RANK, "lora_alpha": 1.0}
    config["alpha_pattern"] = {"to_q": ALPHA, "to_k": ALPHA, "to_v": ALPHA, "to_out.0": ALPHA, "w2": ALPHA}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def diffusers(factors, folder):
    folder.mkdir()
    state = {}
    for name, (down, up) in factors.items():
        state[f"transformer.{name}.lora_A.weight"], state[f"transformer.{name}.lora_B.weight"] = down, up
    path = folder / "pytorch_lora_weights.safetensors"
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": sorted(factors)}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path, metadata=metadata)
    return path


def kohya(factors, folder):
    folder.mkdir()
    state = {}
    for name, (down, up) in factors.items():
        stem = "lora_unet_" + name.replace(".", "_")
        state[f"{stem}.lora_down.weight"], state[f"{stem}.lora_up.weight"] = down, up
        state[f"{stem}.alpha"] = torch.tensor(ALPHA)
    path = folder / "style.safetensors"
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path


def comfy(factors, folder):
    """Z-Image's own names: one layer for queries, keys and values, ``out`` for their output."""
    folder.mkdir()
    state = {}

    def put(name, down, up):
        stem = f"diffusion_model.{name}"
        state[f"{stem}.lora_A.weight"], state[f"{stem}.lora_B.weight"] = down, up
        state[f"{stem}.alpha"] = torch.tensor(ALPHA)

    qkv = [factors[f"{BLOCK}.attention.to_{part}"] for part in "qkv"]
    put(f"{BLOCK}.attention.qkv", qkv[0][0], torch.cat([up for _, up in qkv]))
    put(f"{BLOCK}.attention.out", *factors[f"{BLOCK}.attention.to_out.0"])
    put(f"{BLOCK}.feed_forward.w2", *factors[f"{BLOCK}.feed_forward.w2"])
    path = folder / "style.safetensors"
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path


@pytest.mark.parametrize("write", [peft, diffusers, kohya, comfy])
def test_each_format_gives_the_update_that_its_factors_say(write, student, factors, tmp_path):
    before = {name: p.detach().clone() for name, p in student.core.transformer.named_parameters()}
    merge_loras(student, [(str(write(factors, tmp_path / "lora")), WEIGHT)])
    for name, parameter in student.core.transformer.named_parameters():
        expected = before[name].double()
        if name.removesuffix(".weight") in factors:
            down, up = factors[name.removesuffix(".weight")]
            expected = expected + WEIGHT * ALPHA / RANK * up.double() @ down.double()
            assert not torch.equal(parameter, before[name])
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("write", [diffusers, kohya])
def test_the_teachers_own_pipeline_reads_the_same_update(write, student, factors, teacher, tmp_path):
    from diffusers import ZImagePipeline

    pytest.importorskip("peft")
    path = write(factors, tmp_path / "lora")
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "scheduler": None}
    pipeline = ZImagePipeline(transformer=copy.deepcopy(teacher.transformer), **parts)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.fuse_lora()
    merge_loras(student, [(str(path), 1.0)])
    for name in factors:
        theirs = pipeline.transformer.get_submodule(name).base_layer.weight
        torch.testing.assert_close(
            student.core.transformer.get_submodule(name).weight, theirs, rtol=1e-5, atol=1e-5
        )


def test_several_add_up_and_what_does_not_fit_changes_nothing(student, factors, tmp_path):
    good, other = kohya(factors, tmp_path / "a"), diffusers(factors, tmp_path / "b")
    layer = student.core.transformer.get_submodule(f"{BLOCK}.feed_forward.w2")
    before = layer.weight.detach().clone()
    broken = tmp_path / "c.safetensors"
    save_file({"layers.0.nothing.lora_A.weight": torch.zeros(4, 4)}, broken)
    with pytest.raises(UserError, match="incomplete"):
        merge_loras(student, [(str(good), 1.0), (str(broken), 1.0)])
    assert torch.equal(layer.weight, before)
    merge_loras(student, [(str(good), 1.0), (str(other), -1.0)])
    torch.testing.assert_close(layer.weight, before, rtol=1e-5, atol=1e-5)


def wrong(path, **tensors):
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ({"transformer.all_x_embedder.1-1.lora_A.weight": (4, 8), "transformer.all_x_embedder.1-1.lora_B.weight": (8, 4)},
         r"layers that this student's core does not have: .*all_x_embedder"),
        ({"lora_te_text_model_0.lora_down.weight": (4, 8), "lora_te_text_model_0.lora_up.weight": (8, 4)}, "text encoder"),
        ({"layers.0.attention.to_q.dora_scale": (4,)}, "DoRA"),
        ({"layers.0.attention.to_q.weight": (4, 4)}, "is no LoRA"),
        ({"layers.0.attention.to_q.lora_A.weight": (4, 3), "layers.0.attention.to_q.lora_B.weight": (3, 4)}, "does not fit"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_in_one_line(tensors, line, student, tmp_path):
    path = wrong(tmp_path / "x.safetensors", **{name: torch.zeros(shape) for name, shape in tensors.items()})
    with pytest.raises(UserError, match=line) as error:
        merge_loras(student, [(path, 1.0)])
    assert "\n" not in str(error.value)


def test_values_that_are_not_finite_and_broken_files_are_refused(student, factors, tmp_path):
    name = f"{BLOCK}.feed_forward.w2"
    factors[name] = (factors[name][0].fill_(float("nan")), factors[name][1])
    with pytest.raises(UserError, match="not finite"):
        merge_loras(student, [(str(kohya(factors, tmp_path / "nan")), 1.0)])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00")
    with pytest.raises(UserError, match="cannot read"):
        merge_loras(student, [(str(tmp_path / "cut.safetensors"), 1.0)])


def test_a_quantised_student_is_refused(student, tmp_path):
    student.quantization = {"kind": "int8"}
    with pytest.raises(UserError, match="quantised"):
        merge_loras(student, [])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("a.safetensors", ("a.safetensors", 1.0)), ("ann/style:0.5", ("ann/style", 0.5)), ("a:b", ("a:b", 1.0)), ("x:-1", ("x", -1.0))],
)  # fmt: skip
def test_the_weight_stands_behind_a_colon(text, parsed):
    assert parse_lora(text) == parsed


def test_sources_that_are_none(tmp_path):
    with pytest.raises(UserError, match="finite"):
        parse_lora("a.safetensors:nan")
    with pytest.raises(UserError, match="no such file or directory"):
        find_lora(str(tmp_path / "missing.safetensors"))
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no safetensors"):
        find_lora(str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match="found none"):
        find_lora(str(tmp_path))
