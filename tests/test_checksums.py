"""Checksums of saved models: a flipped byte of a weight is refused, an edited config is named, old folders are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import l2p
from l2p.checksums import CHECKSUMS, check_folder, write_checksums
from l2p.decoders.io import load_decoder
from l2p.errors import UserError, UserNotice
from l2p.evaluation.judge import load_judge
from l2p.students.io import load_student
from l2p.teachers import load_teacher, load_text_encoder

BUNDLED = Path(l2p.__file__).parent
MODELS = {
    "student": (BUNDLED / "students/bundled/landscapes-128", load_student),
    "texts": (BUNDLED / "students/bundled/landscapes-128", load_text_encoder),
    "decoder": (BUNDLED / "decoders/bundled/landscapes-4x", load_decoder),
    "teacher": (BUNDLED / "teachers/bundled/landscapes", load_teacher),
    "judge": (BUNDLED / "evaluation/bundled", lambda folder: load_judge(folder / "judge.safetensors")),
}


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("student", "model.safetensors"),
        ("texts", "text_encoder/model.safetensors"),
        ("texts", "tokenizer/tokenizer.json"),
        ("decoder", "model.safetensors"),
        ("teacher", "vae/diffusion_pytorch_model.safetensors"),
        ("judge", "judge.safetensors"),
    ],
)
def test_a_flipped_bit_is_refused_unless_the_checksums_are_deleted(model, file, tmp_path):
    source, load = MODELS[model]
    folder = shutil.copytree(source, tmp_path / model)
    data = bytearray((folder / file).read_bytes())
    data[len(data) * 2 // 3] ^= 1  # a mantissa's last bit: nothing else would notice
    (folder / file).write_bytes(data)
    with pytest.raises(UserError, match=f"{Path(file).name} is damaged, or was changed since it was saved"):
        load(folder)
    (folder / CHECKSUMS).unlink()
    if file.endswith(".safetensors"):
        load(folder)


def test_an_edited_config_is_read_with_a_warning_that_names_it(tmp_path):
    folder = shutil.copytree(MODELS["student"][0], tmp_path / "student")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_steps": 3}))
    with pytest.warns(UserNotice, match=r"student/config\.json was edited"):
        assert load_student(folder).spec.num_steps == 3


def test_all_files_of_a_model_are_covered_but_those_with_checksums_of_their_own(tmp_path):
    for name in (
        "model.safetensors",
        "config.json",
        "metrics.json",
        "tokenizer/vocab.txt",
        "head/config.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path / "head")
    write_checksums(tmp_path)
    files = json.loads((tmp_path / CHECKSUMS).read_text())["files"]
    assert set(files) == {"config.json", "model.safetensors", "tokenizer/vocab.txt"}
    (tmp_path / "tokenizer/vocab.txt").unlink()
    check_folder(tmp_path, below="")
    with pytest.raises(UserError, match="vocab.txt is missing"):
        check_folder(tmp_path)
