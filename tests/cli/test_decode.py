"""`l2p decode`: batches that go on after a bad file, and mistakes told in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from l2p.decoders.build import from_teacher
from l2p.decoders.io import save_decoder
from l2p.errors import UserNotice
from l2p.recipe import HeadConfig
from l2p.teachers import load_teacher


@pytest.fixture(scope="module")
def weights(tiny_pipeline, tmp_path_factory):
    head = HeadConfig(fine_patch=4, width=16, num_blocks=1, head_dim=16, tile=4, halo=2)
    student = from_teacher(load_teacher(tiny_pipeline), 4, head, adapter_width=8, features=8)
    folder = tmp_path_factory.mktemp("decoder") / "tiny"
    save_decoder(student, folder)
    return folder


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 33, 3), np.uint8)).save(folder / "a.png")
    (folder / "b.jpg").write_text("no picture")
    save_file({"latents": torch.randn(16, 4, 4)}, folder / "c.safetensors", {"sigma": "0.3"})
    save_file({"latents": torch.randn(4, 4, 4)}, folder / "d.safetensors")
    return folder


def test_a_batch_goes_on_and_a_rerun_does_what_is_left(l2p, weights, inputs, tmp_path):
    command = (
        "decode",
        inputs,
        "--weights",
        weights,
        "--dtype",
        "fp32",
        "--threads",
        1,
        "--out",
        tmp_path / "out",
    )
    code, out, _ = l2p(*command, "--json")
    rows = json.loads(out)
    assert code == 1 and [row["status"] for row in rows] == ["decoded", "failed", "decoded", "failed"]
    assert Image.open(tmp_path / "out" / "a.png").size == (132, 80)
    assert Image.open(tmp_path / "out" / "c.png").size == (128, 128) and rows[2]["sigma"] == 0.3
    assert "no picture" in rows[1]["reason"] and "another VAE" in rows[3]["reason"]
    code, out, _ = l2p(*command)
    assert code == 1 and "there already" in out and "2 of 4 could not be decoded" in out


def test_the_vae_beside_it(l2p, weights, inputs, tiny_pipeline, tmp_path):
    common = ("--teacher", tiny_pipeline, "--dtype", "fp32", "--threads", 1)
    code, *_ = l2p(
        "decode", inputs / "a.png", "--decoder", "vae", "--scale", 2, *common, "--out", tmp_path / "x.png"
    )
    assert code == 0 and Image.open(tmp_path / "x.png").size == (66, 40)
    code, _, err = l2p(
        "decode", inputs / "c.safetensors", "--decoder", "vae", *common, "--out", tmp_path / "y.png"
    )
    assert code == 2 and "take --decoder pid" in err


def test_a_prompt_stopped_early(l2p, weights, tiny_pipeline, tmp_path):
    code, out, _ = l2p(
        "decode", "a house", "--teacher", tiny_pipeline, "--weights", weights, "--stop-at-sigma", 0.5, "--height", 32,
        "--width", 32, "--teacher-steps", 8, "--threads", 1, "--dtype", "fp32", "--out", tmp_path / "h.png", "--json",
    )  # fmt: skip
    (row,) = json.loads(out)
    assert code == 0 and row["width"] == 128 and 0 < row["sigma"] <= 0.5
    assert row["steps_skipped"] > 0 and row["seconds_saved"] > 0
    with pytest.warns(UserNotice, match="--stop-at-sigma 0.01 skips none of 2 steps"):
        l2p(
            "decode", "a house", "--teacher", tiny_pipeline, "--weights", weights, "--stop-at-sigma", 0.01, "--height", 32,
            "--width", 32, "--teacher-steps", 2, "--threads", 1, "--dtype", "fp32", "--out", tmp_path / "i.png",
        )  # fmt: skip


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere.png"], "no such file or directory: nowhere.png"),
        (["{c}", "--sigma", "0.95"], "beyond the 0.8"),
        (["{c}", "--sigma", "2"], "expected a noise level from 0"),
        (["{c}", "--scale", "2"], "enlarges 4 times"),
        (["{c}", "--steps", "0"], "--steps is 0"),
        (["{c}", "--stop-at-sigma", "0.5"], "goes with a prompt and --teacher"),
        (["{c}", "--memory-budget", "1MB"], "too small for a tile"),
        (["{b}"], "no picture"),
        (["{c}", "{c}", "--out", "x.png"], "one file for 2 inputs"),
    ],
)
def test_mistakes(l2p, weights, inputs, tmp_path, words, said):
    words = [word.format(b=inputs / "b.jpg", c=inputs / "c.safetensors") for word in words]
    out = [] if "--out" in words else ["--out", tmp_path / "out"]
    code, _, err = l2p("decode", *words, "--weights", weights, "--threads", 1, *out)
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["typo.jpg"], "no such file or directory: typo.jpg (--prompt-input 'typo.jpg' draws these words)"),
        (["in/typo"], "no such file or directory: in/typo"),
        (["runs/typo/latents"], "no such file or directory: runs/typo/latents"),
        (["in"], "'in' is here and could be a prompt too: write ./in, or --prompt-input 'in'"),
        (["./in/c.safetensors", "a house"], "./in/c.safetensors is a file and 'a house' a prompt"),
        ([], "nothing to decode"),
    ],
)
def test_a_path_is_never_painted(l2p, weights, inputs, tiny_pipeline, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = l2p("decode", *words, "--teacher", tiny_pipeline, "--weights", weights, "--out", "out")
    assert code == 2 and said in err and err.count("\n") == 1
    assert not list(tmp_path.rglob("out/*.png"))


def test_pictures_whose_names_would_meet_are_all_decoded(l2p, weights, tmp_path):
    for name, side in (("a.png", 32), ("A.jpg", 48), ("a-2.png", 64), ("a.jpg", 80)):
        Image.new("RGB", (side, side), (90, 9, 9)).save(tmp_path / name)
    names = [tmp_path / name for name in ("a.png", "A.jpg", "a-2.png", "a.jpg")]
    code, out, _ = l2p(
        "decode", *names, "--weights", weights, "--threads", 1, "--out", tmp_path / "out", "--json"
    )
    rows = json.loads(out)
    assert code == 0 and [row["width"] for row in rows] == [128, 192, 256, 320]
    assert len({row["path"].lower() for row in rows}) == 4
    assert [Image.open(row["path"]).width for row in rows] == [128, 192, 256, 320]


def test_a_picture_there_is_kept_for_the_same_input_weights_and_settings_alone(
    l2p, weights, inputs, tmp_path
):
    out = tmp_path / "o.png"
    other = Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 33, 3), np.uint8))
    other.save(inputs / "e.png")
    pid = ("--weights", weights)
    common = ("--dtype", "fp32", "--threads", 1, "--device", "cpu", "--out", out)
    seen = set()
    for words, said in (
        ([inputs / "a.png"], ""),
        ([inputs / "e.png"], "input_sha256: "),
        ([inputs / "e.png", "--seed", 1], "seed: 0 there, 1 here"),
        ([inputs / "e.png", "--seed", 1, "--steps", 2], "steps: None there, 2 here"),
        ([inputs / "e.png", "--decoder", "vae", "--scale", 4], "decoder: pid there, vae here"),
    ):
        words += () if "vae" in words else pid
        code, told, err = l2p("decode", *words, *common)
        assert code == 0 and "there already" not in told and said in err, err
        assert ("is made anew" in err) == bool(said)
        seen.add(out.read_bytes())
        code, told, err = l2p("decode", *words, *common)
        assert code == 0 and "there already" in told and err == ""
    assert len(seen) == 5
    other.save(out)  # somebody else's picture
    before = out.read_bytes()
    code, _, err = l2p("decode", inputs / "a.png", *pid, *common)
    assert code == 2 and "was not made by l2p decode: choose another --out, or --again" in err
    assert out.read_bytes() == before
    assert l2p("decode", inputs / "a.png", *pid, *common, "--again")[0] == 0 and out.read_bytes() != before
