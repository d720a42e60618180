"""Students, teachers, decoders, tokenizers and LoRAs of strangers: nothing beyond their weights is built, nothing elsewhere read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from l2p.cli.info import run
from l2p.declared import Declared, check_config
from l2p.decoders.io import BUNDLED as DECODERS
from l2p.decoders.io import load_decoder
from l2p.errors import UserError
from l2p.students.external_lora import read_lora
from l2p.students.io import load_student
from l2p.students.resolve import BUNDLED as STUDENTS
from l2p.teachers import BUNDLED as TEACHERS
from l2p.teachers import load_teacher, published_configs
from l2p.teachers.text import TextEncoder, read_model
from l2p.teachers.tokenizer_file import check_tokenizer_file

CHROMA = {
    "class": "ChromaTransformer2DModel",
    **{"num_layers": 1, "num_single_layers": 1, "approximator_num_channels": 64, "approximator_layers": 1},
    **{"num_attention_heads": 1, "attention_head_dim": 8, "axes_dims_rope": [2, 2, 4]},
    "approximator_hidden_dim": 8,
}


def copy(source: Path, folder: Path) -> Path:
    """A model's folder whose weights are links; without checksums, as a stranger's is."""
    for path in source.rglob("*"):
        place = folder / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            place.symlink_to(path)
        elif path.is_file() and path.name != "checksums.json":
            shutil.copyfile(path, place)
    return folder


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_line(caught) -> None:
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.fixture
def teacher(tmp_path) -> Path:
    return copy(TEACHERS / "landscapes", tmp_path / "teacher")


@pytest.mark.parametrize(
    "core",
    [
        CHROMA | {"approximator_layers": 10**6},
        CHROMA | {"num_layers": 300, "num_single_layers": 1000, "approximator_num_channels": 400_000},
        CHROMA | {"approximator_num_channels": 400_000},
        {"n_layers": 1000, "n_refiner_layers": 1000},
    ],
    ids=["layers", "a table", "channels", "many layers"],
)
def test_a_student_is_built_only_as_deep_and_wide_as_its_weights(tmp_path, core, frugal):
    folder = copy(STUDENTS / "landscapes-128", tmp_path / "student")
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", core=core if "class" in core else config["core"] | core)
    with pytest.raises(UserError, match="which its weights bear out") as caught:
        load_student(folder)
    one_line(caught)


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("core", {"n_layers": 10**7}),
        ("head", {"num_blocks": 10**7}),
        ("core", {"axes_lens": [10**7] * 3}),
        ("draft", {"block_out_channels": [10**6] * 4}),
        ("", {"num_steps": 10**9}),
        ("", {"core": [1]}),
        ("", {"adapter_width": 10**9}),
    ],
    ids=str,
)
def test_a_decoder_is_built_only_as_deep_and_wide_as_its_weights(tmp_path, section, changes, frugal):
    folder = copy(next(p.parent for p in DECODERS.glob("*/config.json")), tmp_path / "decoder")
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", **({section: config[section] | changes} if section else changes))
    with pytest.raises(UserError, match="is broken") as caught:
        load_decoder(folder)
    one_line(caught)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}),
        ("transformer/config.json", {"n_layers": 10**7}),
        ("transformer/config.json", {"axes_lens": [10**8] * 3}),
        ("vae/config.json", {"layers_per_block": 10**7}),
        ("vae/config.json", {"layers_per_block": 100}),
        ("vae/config.json", {"block_out_channels": [20_000] * 2}),
        ("vae/config.json", {"down_block_types": ["DownEncoderBlock2D"] * 10**5}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**7, "layer_types": None}),
        ("text_encoder/config.json", {"vocab_size": 10**10}),
        ("text_encoder/config.json", {"max_position_embeddings": 10**10}),
        ("text_encoder/config.json", {"nested": {"num_layers": 1e9}}),
    ],
    ids=str,
)
def test_a_teacher_is_built_only_as_deep_and_wide_as_its_weights(teacher, file, changes, frugal):
    edit(teacher / file, **changes)
    with pytest.raises(UserError, match="is broken") as caught:
        load_teacher(teacher)
    one_line(caught)
    if file.startswith("text_encoder"):
        with pytest.raises(UserError, match="is broken"):
            read_model(teacher, "text_encoder", None, None)


def test_configs_of_published_teachers_pass(teacher):
    for name, config in published_configs().items():
        check_config(config, Declared(tensors=100, widest=4096), name)
    assert load_teacher(teacher).name == str(teacher)


@pytest.mark.parametrize("index", ["[1]", '"x"', "{}", '{"_class_name": ["a"]}', '{"_class_name": null}'])
def test_an_index_of_another_shape_ends_in_one_line(teacher, index):
    (teacher / "model_index.json").write_text(index)
    with pytest.raises(UserError, match="names no pipeline") as caught:
        load_teacher(teacher)
    one_line(caught)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
@pytest.mark.parametrize("name", ["shard.bin", "../../outside.safetensors", "../vae/x.safetensors"])
def test_an_index_of_a_part_leads_to_safetensors_beside_it(teacher, part, name):
    weights = next((teacher / part).glob("*.safetensors"))
    state = load_file(weights)
    weights.unlink()
    place = teacher / part / name
    torch.save(state, place) if name.endswith(".bin") else save_file(state, place)
    base = weights.name.removesuffix(".safetensors")
    (teacher / part / f"{base}.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(state, name)})
    )
    with pytest.raises(UserError, match=r"expected \.safetensors files beside it"):
        load_teacher(teacher)
    if part == "text_encoder":
        with pytest.raises(UserError, match=r"expected \.safetensors files beside it"):
            read_model(teacher, part, None, None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", {"base_model_name_or_path": "ann/it"}),
        ("model_index.json", {"_class_name": "X"}),
    ],
)
def test_a_part_leads_to_no_other_model(teacher, name, content):
    (teacher / "text_encoder" / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match="adapter|pipeline inside"):
        load_teacher(teacher)


def replace(content: str, **pattern: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: object) -> dict[str, object]:
    return {"type": "Sequence", "normalizers": list(steps)}


TEMPLATE = {"type": "TemplateProcessing", "single": [0] * 11, "special_tokens": {"x": {"ids": [5] * 10**5}}}
TOKENIZERS = {
    "doubling": {"normalizer": sequence(*[replace("aa", String="a")] * 26)},
    "nested": {"normalizer": sequence(sequence(*[replace("aa", String="a")] * 5))},
    "of nothing": {"normalizer": replace("aa", String="")},
    "by an expression": {"normalizer": replace("a" * 100, Regex="x*")},
    "long prefix": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
    "bytes of bytes": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 20}},
    "unknown": {"normalizer": {"type": "Evil"}},
    "a list": {"normalizer": [1]},
    "template": {"post_processor": TEMPLATE},
    "padding": {"padding": {"strategy": {"Fixed": 10**9}}},
    "padded to": {"padding": {"strategy": "BatchLongest", "pad_to_multiple_of": 10**9}},
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_blows_a_prompt_up_is_refused(teacher, name, frugal):
    edit(teacher / "tokenizer" / "tokenizer.json", **TOKENIZERS[name])
    for read in (TextEncoder.from_pretrained, load_teacher):
        with pytest.raises(UserError, match=r"many times longer|unknown kind") as caught:
            read(teacher)
        one_line(caught)


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        sequence({"type": "Precompiled", "precompiled_charsmap": "x"}, replace("▁", Regex=" {2,}")),
        sequence({"type": "Prepend", "prepend": "▁"}, replace("▁", String=" ")),
        sequence({"type": "NFC"}, replace(" ", Regex="\\s+"), {"type": "Lowercase"}),
    ],
    ids=["none", "T5", "Llama", "CLIP"],
)
def test_the_tokenizers_of_published_encoders_pass(tmp_path, normalizer):
    before = {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]}
    found = {"normalizer": normalizer, "pre_tokenizer": before, "padding": None, "post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    check_tokenizer_file(tmp_path)


def test_a_failure_inside_the_tokenizer_and_one_without_padding_end_in_one_line(teacher):
    encoder = TextEncoder.from_pretrained(teacher)
    encoder.tokenizer.pad_token = None
    with pytest.raises(UserError, match="no pad_token"):
        encoder(["a lake"])
    edit(teacher / "tokenizer" / "tokenizer.json", normalizer=replace("b", Regex="(a|aa)+$"))
    with pytest.raises(UserError, match="the tokenizer is broken") as caught:
        TextEncoder.from_pretrained(teacher)(["a" * 60 + "b"])
    one_line(caught)


A, B = "to_q.lora_A.weight", "to_q.lora_B.weight"
HONEST = {A: torch.zeros(2, 8), B: torch.zeros(8, 2)}
LORAS = {
    "an endless expression": (HONEST, {"lora_alpha": 1, "alpha_pattern": {"(a+)+b": 2}}, {}),
    "a broken expression": (HONEST, {"lora_alpha": 1, "alpha_pattern": {"(": 2}}, {}),
    "rank 0": ({A: torch.zeros(0, 8), B: torch.zeros(8, 0)}, {"lora_alpha": 1}, {}),
    "no matrices": ({A: torch.tensor(1.0), B: torch.tensor(1.0)}, None, {}),
    "a vector of alphas": ({**HONEST, "to_q.alpha": torch.zeros(3)}, None, {}),
    "no number": ({**HONEST, "to_q.alpha": torch.tensor(float("nan"))}, None, {}),
    "integers": ({A: torch.zeros(2, 8, dtype=torch.int8), B: torch.zeros(8, 2, dtype=torch.bool)}, None, {}),
    "a huge alpha": (HONEST, {"lora_alpha": 10**400}, {}),
    "a list of alphas": (HONEST, {"lora_alpha": 1, "alpha_pattern": [1]}, {}),
    "deep facts": (HONEST, None, {"lora_adapter_metadata": "[" * 100_000}),
}


@pytest.mark.parametrize("name", LORAS)
def test_an_odd_lora_ends_in_one_line(tmp_path, name):
    state, config, metadata = LORAS[name]
    save_file(state, tmp_path / "l.safetensors", metadata=metadata)
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        read_lora(tmp_path / "l.safetensors", {"to_q": (8, 8)}, "ZImagePipeline")
    one_line(caught)


@pytest.mark.parametrize("pattern", ["to_q", "^block.to_q$", r"block\.to_q"])
def test_a_pattern_that_is_a_name_gives_its_layer_an_alpha(tmp_path, pattern):
    state = {f"{name}.{key}": value.clone() for name in ("block", "other") for key, value in HONEST.items()}
    save_file(state, tmp_path / "l.safetensors")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"lora_alpha": 4, "alpha_pattern": {pattern: 8}})
    )
    shapes = {"block.to_q": (8, 8), "other.to_q": (8, 8)}
    found = read_lora(tmp_path / "l.safetensors", shapes, "ZImagePipeline")
    assert found["block.to_q"].scale == 4 and found["other.to_q"].scale == (4 if pattern == "to_q" else 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": [1]},
        {"core": "x"},
        {"recipe": [1]},
        {"guidance_scale": "2"},
        {"teacher": ["x"]},
        {"source": "x"},
        {"core": {"class": "FluxTransformer2DModel", "num_layers": "a", "num_single_layers": 3}},
    ],
    ids=str,
)
def test_info_of_another_shape_shows_what_there_is(tmp_path, changes, capsys):
    from argparse import Namespace

    folder = copy(STUDENTS / "landscapes-128", tmp_path / "student")
    edit(folder / "config.json", **changes)
    (folder / "x.safetensors").mkdir()
    (folder / "metrics.json").write_text('{"student": [1]}')
    run(Namespace(student=str(folder), json=False))
    assert "parameters" in capsys.readouterr().out
