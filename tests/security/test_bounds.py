"""Each limit just beyond and just within; nothing is unpickled, whoever loads it."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import l2p
from l2p import files, yaml_file
from l2p.errors import UserError
from l2p.recipe import MOST_LAYERS, load_recipe
from l2p.students.io import read_spec
from l2p.students.resolve import BUNDLED

ROOT = Path(l2p.__file__).parent


@pytest.fixture
def recipe(tmp_path):
    """``recipe(text) -> path``."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


OPTIONS = "name: x\ncorpus: {{quality: {{scorer: s, options: {{a: {} }}}}}}\n"


@pytest.mark.parametrize(
    ("beyond", "within", "said"),
    [
        (
            f"name: x\n#{'y' * yaml_file.LARGEST}\n",
            f"name: x\n#{'y' * (yaml_file.LARGEST - 10)}\n",
            "larger than 256 KiB",
        ),
        (OPTIONS.format("[" * 24 + "]" * 24), OPTIONS.format("[" * 15 + "]" * 15), "nested deeper than 24"),
        (
            OPTIONS.format(f"[{'1,' * yaml_file.MOST_NODES}]"),
            OPTIONS.format(f"[{'1,' * (yaml_file.MOST_NODES // 100)}]"),
            "more than 20000 values",
        ),
        (
            OPTIONS.format(f"[&a [{'1,' * 200}]{', *a' * 200}]"),
            OPTIONS.format(f"[&a [{'1,' * 30}]{', *a' * 30}]"),
            "more than 20000 values",
        ),
    ],
    ids=["size", "depth", "values", "aliases"],
)
def test_yaml_is_bounded_and_its_neighbours_are_read(recipe, beyond, within, said):
    with pytest.raises(UserError, match=said) as caught:
        load_recipe(recipe(beyond))
    assert "\n" not in str(caught.value)
    assert load_recipe(recipe(within)).name == "x"


def test_so_many_recipes_extend_one_another_and_no_more(recipe):
    recipe("name: x\n", "0.yaml")
    for k in range(1, MOST_LAYERS + 1):
        recipe(f"extends: {k - 1}.yaml\nseed: {k}\n", f"{k}.yaml")
    last = Path(recipe("name: x\n", "0.yaml")).with_name(f"{MOST_LAYERS - 1}.yaml")
    assert load_recipe(last).seed == MOST_LAYERS - 1
    with pytest.raises(UserError, match=f"more than {MOST_LAYERS} recipes extend"):
        load_recipe(last.with_name(f"{MOST_LAYERS}.yaml"))


def test_a_parquet_that_declares_too_many_bytes_is_refused(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from l2p import texts

    pq.write_table(pa.table({"prompt": [f"a lake {k}" for k in range(1000)]}), tmp_path / "p.parquet")
    size = pq.ParquetFile(tmp_path / "p.parquet").metadata.row_group(0).total_byte_size
    for most in (size, size - 1):
        monkeypatch.setattr(texts, "MOST_DECLARED", most)
        if most == size:
            assert len(list(texts.read_prompts(tmp_path / "p.parquet"))) == 1000
        else:
            with pytest.raises(UserError, match="declares 1,000 rows and"):
                texts.read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize("name", ["lift_scale", "guidance_scale", "shift"])
@pytest.mark.parametrize("value", [0, -1, "1", True, None, [1], 10**30, float("inf"), float("nan")], ids=str)
def test_scales_of_a_student_are_bounded(tmp_path, name, value):
    config = json.loads((BUNDLED / "landscapes-128" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(UserError, match=f"{name} is "):
        read_spec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {name: 1000}))
    assert getattr(read_spec(tmp_path), name) == 1000


@pytest.mark.parametrize("name", ["../x", "/etc", "a b", "~/x", None, 5, "-/x"])
def test_a_student_takes_its_text_encoder_from_a_name_on_the_hub_alone(tmp_path, monkeypatch, name):
    from l2p.students import pipeline

    monkeypatch.setattr(pipeline, "download", lambda *_: pytest.fail("fetched or followed"))
    config = json.loads((BUNDLED / "landscapes-128" / "config.json").read_text())
    for reference in (
        {"name": name, "revision": "c0ffee"},
        {"name": "ann/it", "revision": "../x"},
        name or "ann/it",
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"text_encoder": reference}))
        with pytest.raises(UserError, match="expected a Hub name and a revision"):
            pipeline.text_encoder_folder(tmp_path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".safetensors.bin", ""])
def test_a_lora_is_a_safetensors_file(tmp_path, suffix):
    from l2p.students.external_lora import find_lora

    torch.save({"a": torch.ones(1)}, tmp_path / f"lora{suffix}")
    with pytest.raises(UserError, match="is no safetensors file"):
        find_lora(str(tmp_path / f"lora{suffix}"))


@pytest.mark.parametrize(
    "endpoint",
    ["https://me:swordfish@host", "https://:swordfish@host", "https://swordfish@host", "file:///x", "host"],
)
def test_an_endpoint_to_publish_at_holds_no_password(endpoint):
    from l2p.hub.push import push

    with pytest.raises(UserError, match="the endpoint is expected as") as caught:
        push("landscapes-128", "ann/it", endpoint=endpoint, token="hf_x")
    assert "swordfish" not in str(caught.value)


def test_decoders_know_the_limit_of_pictures(tmp_path, monkeypatch):
    """For what they find out only when they decode, such as a later frame."""
    from l2p.images import read_picture

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setenv("L2P_MAX_PIXELS", "50")
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    read_picture(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == 50


def leftover(folder: Path) -> Path:
    """What a writer that was killed left: its process is of this machine and gone."""
    path = folder / f".a.4194303-1-{files._machine()}-01234567.partial.txt"
    path.write_text("x")
    return path


def test_what_another_user_left_is_left_alone(tmp_path, monkeypatch):
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    path = leftover(tmp_path)
    files.sweep(tmp_path)
    assert path.exists()
    monkeypatch.setattr(os, "geteuid", lambda: me)
    files._swept.clear()
    files.sweep(tmp_path)
    assert not path.exists()


def test_a_link_that_appears_while_a_folder_is_written_is_not_followed(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    with pytest.raises(OSError, match="symbolic links"), files.atomic_path(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "link").symlink_to(secret)
        monkeypatch.setattr(Path, "is_symlink", lambda _: False)  # it was none when that was asked
    assert secret.stat().st_mode & 0o777 == 0o600


class Runs:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def archive(path: Path, **arrays: object) -> Path:
    odd = {name: np.array([value], dtype=object) for name, value in arrays.items()}
    np.savez(path, **odd)
    return path


def test_nothing_is_unpickled(tmp_path):
    from l2p.corpus.samples import decode_tensors
    from l2p.evaluation import report
    from l2p.evaluation.references import digest, remembered
    from l2p.hub import stage
    from l2p.published import checkpoint
    from l2p.training.engine.sharded import load_checkpoint

    runs = Runs(tmp_path / "ran")
    pickle.loads(pickle.dumps(runs))
    assert runs.path.exists()  # so it would
    runs.path.unlink()
    torch.save({"l2p": runs, "state_dict": {}}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(runs))
    buffer = io.BytesIO()
    np.save(buffer, np.array([runs], dtype=object), allow_pickle=True)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "student").mkdir()
    drawn = archive(tmp_path / "evaluation" / "pictures.npz", student=runs, captions=runs, teacher=runs)
    shutil.copy(drawn, tmp_path / f"{digest({'a': 1})[:24]}.npz")
    for read in (
        lambda: load_checkpoint(tmp_path / "a.ckpt"),
        lambda: load_checkpoint(tmp_path / "b.ckpt"),
        lambda: checkpoint._unpickled(tmp_path / "a.ckpt"),
        lambda: checkpoint._unpickled(tmp_path / "b.ckpt"),
        lambda: decode_tensors(buffer.getvalue(), ".latent.npy"),
        lambda: report._pictures(drawn),
        lambda: stage._pictures(tmp_path / "student", tmp_path / "out.png"),
        lambda: remembered(tmp_path, {"a": 1}, ["student"], lambda: pytest.skip("drawn anew")),
    ):
        try:
            read()
        except (UserError, ValueError, pytest.skip.Exception):
            pass  # a UserError is one; what is said is tested where it is said
        else:
            pytest.fail("something was read")
        assert not runs.path.exists()


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call in the package of what ends so, with its place."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if f"{name}(" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name):
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node))
    return found


def says(call: ast.Call, keyword: str, value: object) -> bool:
    return any(
        k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value
        for k in call.keywords
    )


@pytest.mark.parametrize(
    ("function", "keyword", "value"),
    [
        ("torch.load", "weights_only", True),
        ("np.load", "allow_pickle", False),
        ("trainer.fit", "weights_only", True),
        ("Environment", "autoescape", True),
    ],
)
def test_who_loads_says_that_nothing_may_run(function, keyword, value):
    """Also where it is the library's default today."""
    found = [(place, call) for place, call in calls(function) if ast.unparse(call.func) == function]
    assert found and [place for place, call in found if not says(call, keyword, value)] == []


def test_weights_of_libraries_are_safetensors():
    """Of every ``from_pretrained`` of another library that reads weights: texts have none, and our own read nothing else."""
    harmless = ("Tokenizer", "Processor", "Config", "Scheduler")
    own = (
        "cls.",
        "super()",
        "StudentPipeline",
        "PipelineEncoder",
        "TextEncoder",
        "PixelStudent",
        "CaptionReader",
    )
    wrong = []
    for place, call in calls(".from_pretrained"):
        name = ast.unparse(call.func)
        if not any(word in name for word in (*harmless, *own)):
            if not says(call, "use_safetensors", True):
                wrong.append(f"{place} {name}")
    assert wrong == []


def test_a_pickle_beside_a_models_config_is_not_taken_for_its_weights(tiny_pipeline, tmp_path):
    from safetensors.torch import load_file

    from l2p.teachers import load_teacher
    from l2p.teachers.text import TextEncoder

    for part, name, load in (
        ("text_encoder", "pytorch_model.bin", TextEncoder.from_pretrained),
        ("transformer", "diffusion_pytorch_model.bin", load_teacher),
    ):
        folder = tmp_path / part
        shutil.copytree(tiny_pipeline, folder)
        (weights,) = (folder / part).glob("*.safetensors")
        torch.save(load_file(weights), folder / part / name)
        weights.unlink()
        with pytest.raises(UserError, match="safetensors"):
            load(folder)


def test_templates_of_pages_trust_no_text():
    pages = [path for path in ROOT.rglob("*.html") if "{{" in path.read_text(encoding="utf-8")]
    assert pages and not [path.name for path in pages if "|safe" in path.read_text().replace(" ", "")]
