"""What made an artefact decides whether it is reused; damaged bytes never are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from l2p import artifacts
from l2p.errors import UserError
from l2p.images import made_from_of, read_picture, save_png


def test_differences_are_named_and_unknown_hashes_pass():
    there = {"seed": 0, "size": [8, 8], "vae_sha256": "a" * 64, "teacher.sha256": None}
    assert artifacts.differences(there, there) == ""
    here = {"seed": 1, "size": [8, 8], "vae_sha256": "b" * 64, "teacher.sha256": "c" * 64}
    assert (
        artifacts.differences(there, here)
        == f"seed: 0 there, 1 here, vae_sha256: {'a' * 12} there, {'b' * 12} here"
    )
    assert artifacts.differences({}, {"x": 1, "x_sha256": "d" * 64}) == "x: None there, 1 here"
    many = {str(i): i for i in range(5)}
    assert artifacts.differences(many, {}).endswith("and 2 more")


def make(path, made_from, value: bytes) -> None:
    with artifacts.recorded(path, made_from) as partial:
        partial.write_bytes(value)


def test_a_cache_is_reused_for_what_made_it_alone(tmp_path, capsys):
    path = tmp_path / "latents.npy"
    assert (
        not artifacts.reusable(path, {"seed": 0}) and capsys.readouterr().err == ""
    )  # nothing there, nothing to say
    make(path, {"seed": 0, "sizes": (8, 8)}, b"numbers")
    assert artifacts.reusable(path, {"seed": 0, "sizes": (8, 8)}) and capsys.readouterr().err == ""
    assert not artifacts.reusable(path, {"seed": 1, "sizes": (8, 8)})
    assert capsys.readouterr().err == f"{path} is made anew (seed: 0 there, 1 here)\n"
    path.write_bytes(b"numbert")
    assert not artifacts.reusable(path, {"seed": 0, "sizes": (8, 8)})
    assert "its bytes are damaged" in capsys.readouterr().err
    artifacts.record_of(path).unlink()
    assert not artifacts.reusable(path, {"seed": 0, "sizes": (8, 8)})  # of a version that noted nothing
    assert artifacts.UNKNOWN in capsys.readouterr().err


def test_a_kill_between_a_cache_and_its_record_makes_it_anew(tmp_path, monkeypatch):
    path = tmp_path / "latents.npy"
    make(path, {"seed": 0}, b"old")
    monkeypatch.setattr(artifacts, "write_record", lambda *_: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        make(path, {"seed": 1}, b"new")
    assert path.read_bytes() == b"new"
    assert not artifacts.reusable(path, {"seed": 0}) and not artifacts.reusable(path, {"seed": 1})


@pytest.mark.parametrize("large", [False, True])
def test_a_png_holds_what_made_it(tmp_path, monkeypatch, large):
    monkeypatch.setattr("l2p.images.LARGE", 0 if large else 2**40)
    path, picture = tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
    made_from = {"seed": 3, "prompt": "Häuser, ☂"}
    save_png(picture, path, made_from)
    assert made_from_of(path) == made_from and np.array_equal(read_picture(path), picture)
    assert artifacts.why_not(path, made_from) is None
    assert artifacts.why_not(path, made_from | {"seed": 4}) == "seed: 3 there, 4 here"
    data = path.read_bytes()
    for place in range(40, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            same = np.array_equal(read_picture(path), picture) and made_from_of(path) in (made_from, None)
        except UserError:
            continue
        assert same, place
    save_png(picture, path)
    assert artifacts.why_not(path, made_from) == artifacts.UNKNOWN


def test_a_sealed_document_shows_a_changed_value(tmp_path):
    path = tmp_path / "marker.json"
    artifacts.write_sealed(path, {"steps": 10, "settings": {"a": (1, 2)}})
    assert artifacts.read_sealed(path, "") == {"steps": 10, "settings": {"a": [1, 2]}}
    path.write_text(path.read_text().replace("10", "11"))
    with pytest.raises(UserError, match="marker.json is damaged.*: delete it"):
        artifacts.read_sealed(path, "delete it")
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON.*: delete it"):
        artifacts.read_sealed(path, "delete it")
    path.write_text("[]")
    with pytest.raises(UserError, match="no mapping.*: delete it"):
        artifacts.read_sealed(path, "delete it")
    path.write_text(json.dumps({"steps": 1}))  # older than the seal
    assert artifacts.read_sealed(path, "") == {"steps": 1}


def test_hashes_follow_contents_and_not_places(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "vae").mkdir(parents=True)
        (tmp_path / name / "vae" / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "model_index.json").write_text('{"_class_name": "X", "vae": ["diffusers", "V"]}')
    assert artifacts.hash_pipeline(tmp_path / "a") == artifacts.hash_pipeline(tmp_path / "b")
    before = artifacts.hash_pipeline(tmp_path / "b")
    (tmp_path / "b" / "logs").mkdir()
    (tmp_path / "b" / "logs" / "x.json").write_text("no part of the pipeline")
    assert artifacts.hash_pipeline(tmp_path / "b") == before
    (tmp_path / "b" / "vae" / "model.safetensors").write_bytes(b"Weights")
    assert artifacts.hash_pipeline(tmp_path / "b") != before
    weight = torch.randn(30, 30)
    assert artifacts.hash_tensors({"w": weight}) == artifacts.hash_tensors({"w": weight.clone()})
    other = weight.clone()
    other[17, 3] += 1e-6
    assert artifacts.hash_tensors({"w": weight}) != artifacts.hash_tensors({"w": other})
    assert artifacts.hash_tensors({"w": weight.bfloat16()}) != artifacts.hash_tensors({"w": weight.half()})


def test_a_flipped_bit_in_a_checkpoint_is_told_or_changes_nothing(tmp_path):
    from l2p.training.engine.sharded import load_checkpoint

    path, weight = tmp_path / "x.ckpt", torch.randn(40, 50)
    torch.save({"state_dict": {"w": weight}, "l2p": {"step": 3}}, path)
    data, told = path.read_bytes(), 0
    places = [*range(0, len(data), len(data) // 60), *range(len(data) - 300, len(data), 23)]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :])
        try:
            found = load_checkpoint(path)
        except UserError as error:
            assert (
                str(path) in str(error) and "\n" not in str(error) and "delete it and run again" in str(error)
            )
            told += 1
            continue
        assert torch.equal(found["state_dict"]["w"], weight) and found["l2p"] == {"step": 3}
    assert told > 50
