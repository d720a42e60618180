"""Secrets of the environment stand in no file that a run leaves: checkpoints, recipe, report, logs, student, card."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import pytest

from l2p.hub.card import write_card
from l2p.recipe import LoggingConfig
from l2p.training.engine.loggers import extra_loggers


def found(folder: Path, secret: bytes) -> list[str]:
    """The files that hold a secret, also inside archives and compressed streams."""
    hits = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        parts = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts += [archive.read(name) for name in archive.namelist()]
        if path.suffix == ".png":
            parts.append(_texts_of_png(parts[0]))
        if any(secret in part for part in parts):
            hits.append(str(path.relative_to(folder)))
    return hits


def _texts_of_png(data: bytes) -> bytes:
    at, texts = 8, b""
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        if kind == b"zTXt":
            body = zlib.decompress(body.partition(b"\0")[2][1:])
        texts += body if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
        at += size + 12
    return texts


def test_no_file_of_a_run_holds_a_secret_of_its_environment(straight, tmp_path):
    recipe = straight[0]
    folder = Path(recipe.output_dir)
    names = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert {".ckpt", ".yaml", ".json", ".html", ".csv", ".safetensors", ".png", ".npz"} <= names
    write_card(folder / "student", "ann/student")
    try:
        for secret in (b"hf_planted", b"sk-planted", b"planted3planted", b"planted4planted"):
            assert found(folder, secret) == []
    finally:
        (folder / "student" / "README.md").unlink()


def test_the_search_finds_what_is_there(tmp_path):
    """In a text, in a checkpoint, in a picture's compressed text."""
    import torch
    from PIL import Image, PngImagePlugin

    (tmp_path / "a.json").write_text(json.dumps({"x": "hf_planted"}))
    torch.save({"x": "hf_planted"}, tmp_path / "b.ckpt")
    info = PngImagePlugin.PngInfo()
    info.add_text("x", "hf_planted", zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png", pnginfo=info)
    (tmp_path / "d.txt").write_text("nothing")
    assert sorted(found(tmp_path, b"hf_planted")) == ["a.json", "b.ckpt", "c.png"]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_no_file_of_another_logger_and_no_line_of_it_holds_a_secret(kind, tmp_path, monkeypatch, capfd):
    """Weights & Biases keeps here, on this machine, what it would send."""
    library = pytest.importorskip(kind)
    secrets = {
        "HF_TOKEN": "hf_planted",
        "OPENAI_API_KEY": "sk-planted",
        "AWS_SECRET_ACCESS_KEY": "planted4planted",
    }
    secrets["WANDB_API_KEY"] = "planted3planted"
    for name, secret in secrets.items():
        monkeypatch.setenv(name, 3 * secret)
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = LoggingConfig(**{kind: True})
    (logger,) = extra_loggers(config, tmp_path, "name", "one_step")
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finalize("success")
    if kind == "wandb":
        library.finish()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(("tfevents" if kind == "tensorboard" else ".wandb") in path.name for path in written)
    said = "".join(capfd.readouterr())
    for secret in secrets.values():
        assert found(tmp_path, secret.encode()) == [] and secret not in said
