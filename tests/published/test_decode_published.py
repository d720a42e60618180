"""`l2p decode --weights` with an imported PiD: latents, pictures and prompts, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from l2p.published.pid import load_pid
from l2p.published.pid_network import PiDNet
from l2p.published.pid_text import CaptionReader

from .conftest import randomised

LATENTS = torch.randn(16, 3, 4, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def weights(tiny_pid, tmp_path, l2p):
    variant = tiny_pid("pid-flux-2kto4k-v1.5")
    torch.save(
        {f"net.{k}": v for k, v in randomised(PiDNet(variant.sizes)).state_dict().items()}, tmp_path / "a.pth"
    )
    code, _, err = l2p(
        "import", tmp_path / "a.pth", "--variant", "pid-flux-2kto4k-v1.5", "--out", tmp_path / "pid"
    )
    assert code == 0, err
    return tmp_path / "pid"


@pytest.fixture
def decode(l2p, weights, tmp_path):
    def run(*words):
        return l2p("decode", *words, "--weights", weights, "--dtype", "fp32", "--threads", 1)

    return run


def test_latents_to_the_picture_that_decode_makes(decode, weights, tmp_path, gemma):
    save_file({"latents": LATENTS}, tmp_path / "z.safetensors", {"sigma": "0.25"})
    read = ["--text-encoder", gemma, "--prompt", "a red house"]
    for number, words in enumerate(([], read, ["--steps", 2, *read])):
        path = tmp_path / f"{number}.png"
        code, _, err = decode(tmp_path / "z.safetensors", *words, "--seed", 5, "--out", path)
        assert code == 0, err
        decoder = load_pid(weights, dtype=torch.float32)
        text = CaptionReader.from_pretrained(gemma, dtype=torch.float32)(["a red house"]) if words else None
        steps = 2 if "--steps" in words else 4
        padded = torch.nn.functional.pad(LATENTS[None], (0, 0, 0, 1), mode="replicate")  # to whole tokens
        expected = decoder.decode(padded, 0.25, text, seed=5, num_inference_steps=steps)
        expected = ((expected[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()[: 3 * 16]
        assert np.abs(np.asarray(Image.open(path)).astype(float) - expected).max() <= 1


def test_pictures_and_prompts_through_a_teacher(decode, tiny_pipeline, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 33, 3), np.uint8)).save(tmp_path / "a.png")
    code, _, err = decode(
        tmp_path / "a.png", "--teacher", tiny_pipeline, "--steps", 1, "--out", tmp_path / "b.png"
    )
    assert code == 0 and Image.open(tmp_path / "b.png").size == (66, 40), err
    words = [
        "--teacher",
        tiny_pipeline,
        "--teacher-steps",
        4,
        "--stop-at-sigma",
        0.6,
        "--height",
        32,
        "--width",
        32,
    ]
    code, out, err = decode("a lake", *words, "--steps", 1, "--json", "--out", tmp_path / "c.png")
    assert code == 0 and Image.open(tmp_path / "c.png").size == (64, 64), err
    row = json.loads(out)[0]
    assert row["steps_skipped"] > 0 and 0 < row["sigma"] <= 0.6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", 4], "the decoder in"),
        (["--sigma", 0.9], "beyond the 0.8 that the decoder was trained to"),
        (["--steps", 5], "decodes in 1 to 4 steps, got 5"),
        (["--prompt", "a house"], "reads captions with google/gemma-2-2b-it: give it as --text-encoder"),
        (["--memory-budget", "1GB"], "paints whole pictures: leave out --memory-budget"),
        (["--text-encoder", "/nowhere"], "no such file or directory: /nowhere"),
    ],
)
def test_refusals(words, message, decode, tmp_path):
    save_file({"latents": LATENTS}, tmp_path / "z.safetensors")
    code, _, err = decode(tmp_path / "z.safetensors", *words, "--out", tmp_path / "a.png")
    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "a.png").exists()


def test_a_text_encoder_of_another_width(decode, gemma, weights, tmp_path, monkeypatch):
    save_file({"latents": LATENTS}, tmp_path / "z.safetensors")
    config = json.loads((weights / "config.json").read_text())
    assert config["network"]["text_width"] == 16
    monkeypatch.setattr("l2p.published.pid_text.CaptionReader.from_pretrained", lambda *a: _wide())
    code, _, err = decode(tmp_path / "z.safetensors", "--text-encoder", gemma, "--out", tmp_path / "a.png")
    assert code == 2 and "has width 99, pid-flux-2kto4k-v1.5 reads 16" in err


def _wide():
    from types import SimpleNamespace

    return SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(hidden_size=99)))
