"""Every malformed folder ends in one clear line: what is wrong, where, and never a traceback or a picture of noise."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import l2p
from l2p.artifacts import CHECKSUMS
from l2p.cli.main import main
from l2p.errors import UserError
from l2p.runtime import pick_dtype
from l2p.students import weights
from l2p.students.build import from_teacher
from l2p.students.io import load_student, save_student

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


@pytest.fixture(scope="module")
def folders(teacher, lift, student_config, tmp_path_factory) -> dict[str, Path]:
    """The same student in one file, and in shards."""
    folder = tmp_path_factory.mktemp("malformed")
    student = from_teacher(teacher, lift, student_config("linear"), size=(32, 48))
    save_student(student, folder / "one", teacher.text_encoder)
    save_student(student, folder / "shards", teacher.text_encoder, shard_bytes=200_000)
    return {name: folder / name for name in ("one", "shards")}


def config(**changes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        values.update(changes)
        (folder / CONFIG).write_text(json.dumps(values))

    return edit


def part(section: str, **changes) -> Callable[[Path], None]:
    return lambda f: config(**{section: {**json.loads((f / CONFIG).read_text())[section], **changes}})(f)


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda f: (f / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str, keep: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda f: (f / name).write_bytes((f / name).read_bytes()[: keep((f / name).stat().st_size)])


def tensors(change: Callable[[dict], None], name: str = WEIGHTS) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name)

    return edit


def header(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Rewrites the JSON header and leaves the data as they are."""

    def edit(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        values = json.loads(raw[8 : 8 + size])
        change(values)
        new = json.dumps(values).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + size :])

    return edit


def index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / INDEX).read_text())
        change(values)
        (folder / INDEX).write_text(json.dumps(values))

    return edit


def remap(value: str) -> Callable[[Path], None]:
    return index(lambda i: i["weight_map"].update({next(iter(i["weight_map"])): value}))


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]


def steal(folder: Path) -> None:
    """Weights by a symlink that leads out of the folder to something that is no file of weights."""
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/etc/hostname")


BIAS, BIG = "head.final.linear.bias", 2**40
PICKLE = pickle.dumps({"weights": [1.0]})

CASES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no config": ("one", lambda f: (f / CONFIG).unlink(), "config.json is missing"),
    "config is empty": ("one", text(CONFIG, ""), "not valid JSON"),
    "config is cut": ("one", cut(CONFIG, lambda n: n // 2), "not valid JSON"),
    "config is binary": ("one", text(CONFIG, b"\xff\xfe\x00\x81"), "not a text file"),
    "config is a list": ("one", text(CONFIG, "[1]"), "does not describe a student"),
    "config is a bottomless pit": ("one", text(CONFIG, "[" * 200_000), "nested too deep"),
    "config of another class": ("one", config(**{"class": "AutoencoderKL"}), "does not describe a student"),
    "format is newer": ("one", config(format_version=7, needs="2.5.0"), "latent2pixel 2.5.0 reads"),
    "format is a text": ("one", config(format_version="1"), "expected a whole number"),
    "format is true": ("one", config(format_version=True), "expected a whole number"),
    "core is a list": ("one", config(core=[1]), "core is \\[1\\], expected a mapping"),
    "core has an unknown key": ("one", part("core", dims=3), "broken .*dims"),
    "core of a billion layers": ("one", part("core", n_layers=10**9), "n_layers is 1000000000, beyond"),
    "core wider than memory": ("one", part("core", dim=10**12), "beyond"),
    "core of NaN": ("one", part("core", norm_eps=float("nan")), "norm_eps is nan"),
    "core of another width": ("one", part("core", dim=128), "do not fit one another"),
    "core of other captions": ("one", part("core", cap_feat_dim=48), "misshapen: core.transformer.cap"),
    "core of more layers": ("one", part("core", n_layers=5), "missing: core.transformer.layers.3"),
    "head of no kind": ("one", config(head={}), "broken .*kind"),
    "head unknown": ("one", config(head={"kind": "mixer"}), "no head 'mixer'"),
    "head of another kind": ("one", config(head={"kind": "unet", "width": 4}), "missing: head.down"),
    "patch of zero": ("one", config(patch_size=0), "patch_size is 0"),
    "patch is a text": ("one", config(patch_size="16"), "patch_size is '16'"),
    "scale of infinity": ("one", config(lift_scale=float("inf")), "lift_scale is inf"),
    "height of a text": ("one", config(height="tall"), "height is 'tall'"),
    "no weights": ("one", lambda f: (f / WEIGHTS).unlink(), "model.safetensors is missing"),
    "weights are a folder": (
        "one",
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
        "model.safetensors is missing",
    ),
    "weights are empty": ("one", text(WEIGHTS, b""), "broken or cut short"),
    "weights end in the header": ("one", cut(WEIGHTS, lambda n: 100), "broken or cut short"),
    "weights end in the data": ("one", cut(WEIGHTS, lambda n: n - 1), "broken or cut short"),
    "weights go on after the data": (
        "one",
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"more"),
        "broken or cut short",
    ),
    "header length is zero": ("one", text(WEIGHTS, struct.pack("<Q", 0)), "broken or cut short"),
    "header length is huge": ("one", text(WEIGHTS, struct.pack("<Q", BIG) + b"{}"), "broken or cut short"),
    "header is no JSON": ("one", text(WEIGHTS, struct.pack("<Q", 4) + b"spam"), "broken or cut short"),
    "a pickle": ("one", text(WEIGHTS, PICKLE), "broken or cut short"),
    "a torch pickle": ("one", lambda f: torch.save({BIAS: torch.ones(3)}, f / WEIGHTS), "broken or cut short"),
    "a huge shape": ("one", header(lambda h: h[BIAS].update(shape=[BIG, BIG])), "broken or cut short"),
    "offsets beyond the file": (
        "one",
        header(lambda h: h[BIAS].update(data_offsets=[BIG, BIG + 3072])),
        "broken or cut short",
    ),
    "tensors that overlap": (
        "one",
        header(lambda h: h[BIAS].update(data_offsets=[0, 3072])),
        "broken or cut short",
    ),
    "a dtype of no torch": ("one", header(lambda h: h[BIAS].update(dtype="F33")), "broken or cut short"),
    "whole numbers": ("one", tensors(lambda s: s.update({BIAS: s[BIAS].int()})), "dtype: .*I32"),
    "double numbers": ("one", tensors(lambda s: s.update({BIAS: s[BIAS].double()})), "dtype: .*F64"),
    "NaN": ("one", tensors(lambda s: s[BIAS].fill_(torch.nan)), f"not finite: {BIAS}"),
    "infinity": ("one", tensors(lambda s: s[BIAS].fill_(torch.inf)), f"not finite: {BIAS}"),
    "a tensor missing": ("one", tensors(lambda s: s.pop(BIAS)), f"missing: {BIAS}"),
    "a tensor too many": (
        "one",
        tensors(lambda s: s.update(spy=torch.ones(1))),
        "unexpected: spy",
    ),
    "a tensor misshapen": (
        "one",
        tensors(lambda s: s.update({BIAS: torch.ones(3)})),
        "misshapen: .*\\[3\\] for \\[768\\]",
    ),
    "weights of somewhere else": ("one", steal, "broken or cut short"),
    "index is no JSON": ("shards", text(INDEX, "{"), "not valid JSON"),
    "index is a list": ("shards", text(INDEX, "[]"), "maps no weights"),
    "index maps nothing": ("shards", index(lambda i: i.update(weight_map={})), "maps no weights"),
    "index climbs out": ("shards", remap("../../secret.safetensors"), "expected files such as"),
    "index is absolute": ("shards", remap("/etc/passwd"), "expected files such as"),
    "index goes down": ("shards", remap("a/model-00001-of-00002.safetensors"), "expected files such as"),
    "index names a pickle": ("shards", remap("pytorch_model.bin"), "expected files such as"),
    "index names a number": ("shards", index(lambda i: i["weight_map"].update(x=3)), "expected files such as"),
    "index promises more": (
        "shards",
        index(lambda i: i["weight_map"].update(spy=next(iter(i["weight_map"].values())))),
        "missing: spy",
    ),
    "index mixes shards up": (
        "shards",
        lambda f: remap(sorted(f.glob("model-*"))[-1].name)(f),
        "which model.safetensors.index.json looks for in",
    ),
    "a shard missing": ("shards", lambda f: first_shard(f).unlink(), "is missing"),
    "a shard cut": ("shards", lambda f: cut(first_shard(f).name, lambda n: n - 9)(f), "broken or cut short"),
    "a shard of NaN": (
        "shards",
        lambda f: tensors(lambda s: [v.fill_(torch.nan) for v in s.values()], first_shard(f).name)(f),
        "not finite",
    ),
    "no text encoder": ("one", lambda f: shutil.rmtree(f / "text_encoder"), "no text_encoder/ folder"),
    "no tokenizer": ("one", lambda f: shutil.rmtree(f / "tokenizer"), "no tokenizer/ folder"),
    "text encoder cut": ("one", cut("text_encoder/model.safetensors", lambda n: n - 9), "is broken or cut short"),
    "text encoder of less": (
        "one",
        tensors(lambda s: s.pop("norm.weight"), "text_encoder/model.safetensors"),
        "missing: norm.weight",
    ),
    "text encoder of NaN": (
        "one",
        tensors(lambda s: s["norm.weight"].fill_(torch.nan), "text_encoder/model.safetensors"),
        "hold NaN",
    ),
    "tokenizer without settings": (
        "one",
        lambda f: (f / "tokenizer/tokenizer_config.json").unlink(),
        "tokenizer_config.json is missing",
    ),
    "no chat template": (
        "one",
        lambda f: (
            (f / "tokenizer/chat_template.jinja").unlink(missing_ok=True),
            edit_json(f / "tokenizer/tokenizer_config.json", lambda c: c.pop("chat_template", None)),
        ),
        "has no chat template",
    ),
    "tokenizer is no JSON": ("one", text("tokenizer/tokenizer.json", "{"), "is not valid JSON"),
    "text encoder from this machine": (
        "one",
        lambda f: (shutil.rmtree(f / "text_encoder"), config(text_encoder={"name": "/etc", "revision": "x"})(f)),
        "expected a Hub name and a revision",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(case, folders, tmp_path):
    kind, spoil, message = CASES[case]
    broken = tmp_path / "student"
    shutil.copytree(folders[kind], broken)
    spoil(broken)
    (broken / CHECKSUMS).unlink()  # as of a folder that others made
    with pytest.raises(UserError, match=message) as caught:
        l2p.load(broken, device="cpu", dtype="fp32")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_there_are_many_of_them():
    assert len(CASES) >= 40


@pytest.mark.parametrize(
    "case", ["weights end in the data", "a pickle", "index climbs out", "format is newer"]
)
def test_the_command_says_the_same_and_exits_with_2(case, folders, tmp_path, capsys):
    kind, spoil, _ = CASES[case]
    broken = tmp_path / "student"
    shutil.copytree(folders[kind], broken)
    spoil(broken)
    assert main(["generate", str(broken), "a lake", "--out", str(tmp_path / "a.png")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("l2p: ") and printed.err.count("\n") == 1


def test_shards_are_the_same_student(folders):
    one, shards = load_student(folders["one"]), load_student(folders["shards"])
    assert len(list(folders["shards"].glob("model-*.safetensors"))) > 2
    assert not (folders["shards"] / WEIGHTS).exists()
    for (name, a), (other, b) in zip(one.state_dict().items(), shards.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    for folder in folders.values():
        metadata = weights.read_metadata(folder)
        assert json.loads(metadata["config"]) == json.loads((folder / CONFIG).read_text())


def test_what_is_written_loads_in_the_library_of_the_format(folders):
    """The index is the one that transformers and diffusers read: every name maps to the shard that has it."""
    found = json.loads((folders["shards"] / INDEX).read_text())
    for name, file in found["weight_map"].items():
        assert name in load_file(folders["shards"] / file)
    state = load_file(folders["one"] / WEIGHTS)
    assert found["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in state.values())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_copies_in_half_precision_stay_so(folders, tmp_path, dtype):
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    save_student(load_student(folders["one"]), tmp_path / "half", dtype=dtype)
    half, whole = load_student(tmp_path / "half"), load_student(folders["one"])
    assert {p.dtype for p in half.parameters()} == {kind}
    assert half.basis.dtype == torch.float32 and torch.equal(half.basis, whole.basis)
    for a, b in zip(half.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b.to(kind))
    sizes = [(f / WEIGHTS).stat().st_size for f in (tmp_path / "half", folders["one"])]
    assert sizes[0] < 0.75 * sizes[1]
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(folders["one"] / part, tmp_path / "half" / part)
    loaded = l2p.load(tmp_path / "half", device="cpu")
    computes = (
        torch.bfloat16 if dtype == "bf16" else pick_dtype("auto", torch.device("cpu"))
    )  # fp16 crawls on a CPU
    assert loaded.dtype == computes and {p.dtype for p in loaded.student.parameters()} == {computes}
    asked = l2p.load(tmp_path / "half", device="cpu", dtype="fp32")
    assert {p.dtype for p in asked.student.parameters()} == {torch.float32}
    pictures = [p.generate("a lake", seeds=1)[0] for p in (loaded, asked)]
    assert all(picture.size == (48, 32) for picture in pictures)


def test_tuples_stay_tuples(folders, tmp_path):
    student = load_student(folders["one"])
    student.spec.core["axes_dims"] = tuple(student.spec.core["axes_dims"])
    student.spec.teacher["sizes"] = [(1, 2), {"deep": (3,)}]
    save_student(student, tmp_path / "student")
    again = load_student(tmp_path / "student").spec
    assert again == student.spec and isinstance(again.core["axes_dims"], tuple)
