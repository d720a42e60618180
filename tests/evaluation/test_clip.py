"""CLIP score, CMMD and DISTS against computations of their own, on tiny random networks."""

import json

import numpy as np
import pytest
import torch

from l2p.errors import UserError
from l2p.evaluation import Clip, clip_score, cmmd, dists_distance, perceptual
from l2p.images import from_uint8, save_png
from l2p.landscapes import render_batch

TEXTS = ["a lake", "a house by a river at night, with pine trees " * 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ``CLIPModel`` of random weights and its processor, as save_pretrained writes them."""
    import transformers as hf

    path = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = hf.CLIPTokenizer.from_pretrained(path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    last = tokenizer.eos_token_id
    text = {
        "vocab_size": len(tokens),
        "max_position_embeddings": 16,
        "eos_token_id": last,
        "bos_token_id": last - 1,
    }
    config = hf.CLIPConfig(
        text_config={**sizes, **text, "pad_token_id": last},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    hf.CLIPModel(config).save_pretrained(path)
    side = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}
    hf.CLIPProcessor(hf.CLIPImageProcessor(**side), tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures():
    return render_batch(range(9_800_000, 9_800_002), 48, 64)


def test_the_score_is_the_cosine_of_the_projected_towers(folder, pictures):
    import transformers as hf

    pictures = pictures[:, :32, :32]  # its own size: how to resample is the processor's affair
    score = clip_score(from_uint8(pictures), TEXTS, Clip(folder))
    model, tokenizer = hf.CLIPModel.from_pretrained(folder).eval(), hf.CLIPTokenizer.from_pretrained(folder)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    with torch.no_grad():
        for k, text in enumerate(TEXTS):
            pixels = (pictures[k] / 255 - mean) / std
            pixels = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
            words = tokenizer(text, return_tensors="pt").input_ids
            words = torch.cat([words[:, : min(15, words.shape[1] - 1)], words[:, -1:]], 1)  # the end is kept
            image = model.visual_projection(model.vision_model(pixels).pooler_output)
            told = model.text_projection(model.text_model(words).pooler_output)
            expected = max(0.0, 100 * float(torch.cosine_similarity(image, told)))
            assert float(score[k]) == pytest.approx(expected, abs=1e-3)
    assert score.max() > 0 and score[0] != score[1]
    with pytest.raises(ValueError, match="got 1 for 2"):
        clip_score(from_uint8(pictures), TEXTS[:1], Clip(folder))


def test_cmmd_is_the_gaussian_mmd_of_unit_vectors():
    generator = torch.Generator().manual_seed(0)
    a, b, c = (
        torch.nn.functional.normalize(torch.randn(n, 16, generator=generator), dim=1) for n in (9, 7, 400)
    )
    kernel = lambda x, y: float(torch.exp(-(x.double() - y.double()).square().sum() / 200))  # noqa: E731
    within = [
        np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)
    ]
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert cmmd(a, b) == pytest.approx(1000 * (sum(within) - 2 * between), abs=1e-6)
    half = torch.nn.functional.normalize(c[200:] * (torch.arange(16) < 8), dim=1)
    assert abs(cmmd(c[:200], c[200:])) < 0.05 < 20 * 0.05 < cmmd(c[:200], half.abs())


def test_what_is_no_clip_is_one_line(tmp_path, monkeypatch):
    for name in (str(tmp_path), "no/where/at all"):
        with pytest.raises(UserError, match="no CLIP") as caught:
            Clip(name)
        assert "\n" not in str(caught.value)


def test_the_command_measures_with_a_clip_and_says_what_it_left_out(
    l2p, folder, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for side in ("a", "b"):
        for k, picture in enumerate(pictures):
            save_png(picture if side == "a" else picture[::-1], tmp_path / side / f"{k}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    command = ["evaluate", tmp_path / "a", "--against", tmp_path / "b", "--prompts", tmp_path / "prompts.txt"]
    assert l2p(*command, "--clip", folder, "--out", tmp_path / "out")[0] == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    score = clip_score(from_uint8(pictures), TEXTS, Clip(folder)).mean()
    assert metrics["student"]["clip_score"] == pytest.approx(float(score), abs=1e-4)
    assert np.isfinite(metrics["student"]["cmmd"]) and "cmmd" not in metrics["against"]
    assert [line.partition(":")[0] for line in metrics["settings"]["not_measured"]] == ["LPIPS and DISTS"]
    assert l2p(*command, "--out", tmp_path / "without")[0] == 0
    page = (tmp_path / "without" / "report.html").read_text()
    assert "name a CLIP with --clip" in page and "CMMD</th>" not in page


def test_dists_by_its_formula_and_without_its_weights(pictures, monkeypatch, tmp_path):
    import torchvision
    from torchmetrics.functional.image import dists

    images = from_uint8(pictures)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="DISTS needs VGG-16's weights"):
        dists_distance(images, images)
    torch.manual_seed(0)
    blank = torchvision.models.vgg16(weights=None, init_weights=False)
    monkeypatch.setattr(dists, "vgg16", lambda weights: blank)
    monkeypatch.setattr(perceptual, "backbone_available", lambda: True)
    perceptual._dists.cache_clear()
    try:
        other = (images + 0.2).clamp(-1, 1)
        found = dists_distance(other, images)
        assert found.shape == (2,) and dists_distance(images, images).abs().max() < 1e-5 < found.min()
        network = perceptual._dists()
        share = torch.cat([network.alpha, network.beta], 1).flatten().double()
        share, terms = share / share.sum(), [[], []]
        for x, y in zip(
            network.forward_once((other[:1] + 1) / 2), network.forward_once((images[:1] + 1) / 2), strict=True
        ):
            x, y = x[0].flatten(1).double(), y[0].flatten(1).double()
            m, n = x.mean(1), y.mean(1)
            covariance = ((x - m[:, None]) * (y - n[:, None])).mean(1)
            terms[0].append((2 * m * n + 1e-6) / (m**2 + n**2 + 1e-6))
            terms[1].append(
                (2 * covariance + 1e-6) / (x.var(1, unbiased=False) + y.var(1, unbiased=False) + 1e-6)
            )
        expected = 1 - (share.detach() * torch.cat([*terms[0], *terms[1]])).sum()
        assert float(found[0]) == pytest.approx(float(expected), abs=1e-4)
    finally:
        perceptual._dists.cache_clear()
