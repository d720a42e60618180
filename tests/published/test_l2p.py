"""Published L2P weights as students, against an independent fp64 reading of the published formulas."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from l2p import PixelPipeline, load
from l2p.errors import UserError
from l2p.published.checkpoint import Source
from l2p.published.importing import import_weights
from l2p.published.l2p_weights import L2P_VARIANTS, L2PVariant, names
from l2p.students.io import load_student, read_config
from l2p.students.student import PixelStudent
from l2p.teachers import Conditioning

from . import l2p_reference as reference
from .conftest import Doubled, randomised

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NARROW = (
    "layers.1.attention.to_q.weight",
    "layers.1.feed_forward.w1.weight",
)  # kept in fp32, as the frozen layers are


def publish(variant: L2PVariant, path) -> dict[str, torch.Tensor]:
    """A file as the authors would write it, in mixed dtypes; its values in fp64."""
    student = randomised(PixelStudent(variant.spec()))
    state = student.state_dict()
    published = {
        name: state[own].to(torch.float32 if name in NARROW else torch.bfloat16).contiguous()
        for name, (own, _) in names(variant).items()
    }
    save_file(published, path)
    return {name: tensor.double() for name, tensor in published.items()}


@pytest.fixture
def imported(tiny_l2p, tiny_pipeline, tmp_path):
    """``imported(name) -> (variant, folder, fp64 weights by their published names)``."""

    def make(name: str):
        variant = tiny_l2p(name)
        path = tmp_path / variant.file.split("/")[-1]
        weights = publish(variant, path)
        found, license = import_weights(str(path), tmp_path / name, text_encoder=tiny_pipeline)
        assert found == name and license == variant.license
        return variant, tmp_path / name, weights

    return make


def captions() -> tuple[Conditioning, Conditioning]:
    generator = torch.Generator().manual_seed(12)
    embeds = torch.randn(2, 40, 32, generator=generator)
    lengths = torch.tensor([40, 9])
    embeds[1, 9:] = 0
    return Conditioning(embeds, lengths), Conditioning(
        torch.randn(1, 5, 32, generator=generator), torch.tensor([5])
    )


@pytest.mark.parametrize("name", L2P_VARIANTS)
def test_student_is_the_published_formulas(name, imported):
    variant, folder, weights = imported(name)
    student = load_student(folder, dtype=torch.float32)
    w = {key: value.numpy() for key, value in weights.items()}
    p = variant.patch_size
    x_t = torch.randn(2, 3, 2 * p, 3 * p, generator=torch.Generator().manual_seed(2))
    t, (caption, _) = torch.tensor([0.9, 0.35]), captions()
    with torch.no_grad():
        seen = student.forward_features(x_t, t, caption)
        u = student.velocity(x_t, t, caption)
    for number, length in enumerate(caption.lengths.tolist()):
        told = (
            x_t[number].double().numpy(),
            float(t[number]),
            caption.embeds[number, :length].double().numpy(),
        )
        tokens = reference.features(w, *told, variant.core, p)
        np.testing.assert_allclose(seen.inputs[0][number], tokens, rtol=1e-4, atol=1e-4)
        minus_u = reference.local_decoder(w, told[0], tokens, variant.levels)
        np.testing.assert_allclose(u[number], -minus_u, rtol=1e-3, atol=1e-4)


def test_head_level_by_level(imported):
    """The U-Net alone, in fp64: nothing but the formulas is left to differ."""
    variant, folder, weights = imported("l2p-4k")
    head = load_student(folder, dtype=torch.float32).head.double()
    generator = torch.Generator().manual_seed(3)
    x_t = torch.randn(1, 3, 64, 128, generator=generator, dtype=torch.float64)
    tokens = torch.randn(1, 1, 2, 64, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.7], dtype=torch.float64)
    w = {key: value.numpy() for key, value in weights.items()}
    expected = x_t[0].numpy() + 0.7 * reference.local_decoder(
        w, x_t[0].numpy(), tokens[0].numpy(), variant.levels
    )
    with torch.no_grad():
        np.testing.assert_allclose(head(tokens, None, x_t, t)[0], expected, rtol=1e-9, atol=1e-9)


def test_steps_guidance_and_shift_are_the_published_sampler(imported):
    variant, folder, weights = imported("l2p-1k")
    student = load_student(folder, dtype=torch.float32)
    w = {key: value.numpy() for key, value in weights.items()}
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    caption, empty = captions()
    given = noise[0].double().numpy(), caption.embeds[0].double().numpy(), empty.embeds[0].double().numpy()
    for scale in (2.0, 3.5):
        drawn = student.sample(
            noise, caption[:1], 3, empty=empty, guidance_scale=None if scale == 2.0 else scale
        )
        expected = reference.sample(w, *given, 3, scale, variant.core, 16, variant.levels)
        np.testing.assert_allclose(drawn[0], expected, rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="needs the empty prompt"):
        student.sample(noise, caption[:1], 3)


def test_a_folder_keeps_values_dtypes_source_and_sampling(imported):
    variant, folder, weights = imported("l2p-1k")
    state = load_file(folder / "model.safetensors")
    for name, (own, _) in names(variant).items():
        assert state[own].dtype == (torch.float32 if name in NARROW else torch.bfloat16)
        assert torch.equal(state[own].double(), weights[name])
    assert not state["basis"].any() and not state["offset"].any()
    config = read_config(folder)
    assert (config["num_steps"], config["guidance_scale"], config["shift"]) == (30, 2.0, 3.0)
    source = config["source"]
    assert source["name"] == "zhen-nan/L2P" and source["file"] == "model-1k-merge.safetensors"
    assert source["license"] == "apache-2.0" and source["paper"].endswith("2605.12013")
    assert config["teacher"]["name"] == "Tongyi-MAI/Z-Image-Turbo" and (folder / "tokenizer").is_dir()


def test_it_draws_with_its_own_sampling(imported, monkeypatch):
    _, folder, _ = imported("l2p-1k")
    pipeline = load(folder)
    calls = []
    forward = PixelStudent.forward
    monkeypatch.setattr(PixelStudent, "forward", lambda *args: calls.append(1) or forward(*args))
    first, again, plain = (
        np.asarray(pipeline.generate_arrays(["a red house"], [3], 32, 32, 2, guidance_scale=scale))
        for scale in (None, 2.0, 1.0)
    )
    assert len(calls) == 2 * 2 + 2 * 2 + 2  # two passes a step with guidance
    assert np.array_equal(first, again) and not np.array_equal(first, plain)


def test_the_text_encoders_name_is_noted_where_none_is_copied(tiny_l2p, tmp_path):
    variant = tiny_l2p("l2p-4k")
    path = tmp_path / "l2p_4k_sft.safetensors"
    publish(variant, path)
    import_weights(str(path), tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert config["text_encoder"] == {"name": "Tongyi-MAI/Z-Image", "revision": "main"}
    assert (config["num_steps"], config["guidance_scale"], config["height"]) == (50, 4.0, 128)


def test_published_sizes_are_complete():
    """545 tensors in the published file of 1024 px; with layers 5 to 24 in fp32 and the rest in bf16 it has 19.57 GB."""
    found = names(L2P_VARIANTS["l2p-1k"])
    assert len(found) == 545
    middle = tuple(f"layers.{n}." for n in range(5, 25))
    size = sum(t.numel() * (4 if name.startswith(middle) else 2) for name, (_, t) in found.items())
    assert round(size / 1e9, 2) == 19.57
    four_k = names(L2P_VARIANTS["l2p-4k"])
    assert four_k["local_decoder.bottleneck.0.weight"][1].shape == (512, 512 + 3840, 1, 1)
    assert four_k["all_x_embedder.64-1.weight"][1].shape == (3840, 3 * 64 * 64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("x_pad_token"), r"do not fit the variant l2p-1k; missing: x_pad_token"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda s: s.update({"local_decoder.out_conv.bias": torch.zeros(4)}), r"misshapen: local_decoder.out_conv.bias \(\[4\] for \[3\]\)"),
        (lambda s: s.update(x_pad_token=torch.zeros(1, 64, dtype=torch.int8)), "of a wrong dtype: x_pad_token"),
        (lambda s: s.update(x_pad_token=torch.full((1, 64), torch.nan)), "x_pad_token holds NaN or infinity"),
        (lambda s: s.update({"local_decoder.enc_8k.0.weight": torch.zeros(1)}), "an L2P of 8192 or 10240 px"),
        (lambda s: s.update({"layers.0.attention.qkv.weight": torch.zeros(1)}), "laid out for ComfyUI"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_the_variant_is_one_line(spoil, message, tiny_l2p, tmp_path):
    path = tmp_path / "model-1k-merge.safetensors"
    publish(tiny_l2p("l2p-1k"), path)
    state = load_file(path)
    spoil(state)
    save_file(state, path)
    with pytest.raises(UserError, match=message):
        import_weights(str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_text_encoder_that_does_not_fit(tiny_l2p, tmp_path):
    path = tmp_path / "model-1k-merge.safetensors"
    publish(tiny_l2p("l2p-1k"), path)
    texts = tmp_path / "texts"
    for given, message in (
        ("nowhere/at/all", "no text encoder at"),
        (str(tmp_path), "has no text_encoder/ folder"),
    ):
        with pytest.raises(UserError, match=message):
            import_weights(str(path), tmp_path / "out", text_encoder=given)
    (texts / "text_encoder").mkdir(parents=True)
    (texts / "tokenizer").mkdir()
    (texts / "text_encoder" / "config.json").write_text(json.dumps({"hidden_size": 99}))
    with pytest.raises(UserError, match="has width 99, this student reads 32"):
        import_weights(str(path), tmp_path / "out", text_encoder=str(texts))


def test_what_is_larger_than_a_shard_passes_through_file_by_file(tiny_l2p, tmp_path, monkeypatch):
    from l2p.published import l2p_weights

    variant = tiny_l2p("l2p-1k")
    path = tmp_path / "model-1k-merge.safetensors"
    published = publish(variant, path)
    write = l2p_weights.weights.write_weights
    monkeypatch.setattr(
        l2p_weights.weights, "write_weights", lambda *a, **k: write(*a, **k, shard_bytes=200_000)
    )
    l2p_weights.import_l2p("l2p-1k", variant, Source(path, path.name), tmp_path / "out", None, None)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    state = load_student(tmp_path / "out").state_dict()
    assert all(torch.equal(state[own].double(), published[name]) for name, (own, _) in names(variant).items())


def test_it_is_published_again_under_its_own_origin(imported, tmp_path):
    from l2p.hub.stage import stage

    _, folder, weights = imported("l2p-1k")
    stage(folder, tmp_path / "staged")
    card = (tmp_path / "staged" / "README.md").read_text()
    assert (
        "Published as `model-1k-merge.safetensors` of `zhen-nan/L2P`" in card
        and "base_model: zhen-nan/L2P" in card
    )
    assert "license: apache-2.0" in card and "one-step" not in card and "in 30 steps" in card
    config = read_config(tmp_path / "staged")
    assert config["source"] == read_config(folder)["source"] and config["guidance_scale"] == 2.0


def test_exported_for_diffusers_it_is_guided_too(imported, tmp_path, l2p):
    _, folder, _ = imported("l2p-1k")
    code, _, err = l2p("export", folder, "--to", "diffusers", tmp_path / "pipeline")
    assert code == 0, err
    exported = PixelPipeline.from_pretrained(tmp_path / "pipeline", torch_dtype=torch.float32)
    given = {"height": 32, "width": 32, "num_inference_steps": 2}
    picture = exported("a red house", generator=torch.Generator().manual_seed(3), **given).images[0]
    own = load(folder, dtype="fp32").generate_arrays(["a red house"], [3], 32, 32, 2)[0]
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(own)).max() <= 1
    code, _, err = l2p("export", folder, "--to", "torch-export", tmp_path / "graph.pt2")
    assert (
        code == 2
        and "draws with a guidance scale of 2, which an exported graph has no second prompt for" in err
    )


def test_what_needs_a_lift_is_refused(imported):
    _, folder, _ = imported("l2p-1k")
    with pytest.raises(UserError, match="was not lifted from a teacher, so it cannot be grown"):
        load_student(folder).check_lifted("grown")


def test_generate_and_info_on_the_command_line(imported, tmp_path, l2p):
    _, folder, _ = imported("l2p-1k")
    sizes = ["--height", 32, "--width", 32, "--steps", 2, "--seed", 3]
    code, _, err = l2p("generate", folder, "a red house", *sizes, "--out", tmp_path / "a.png")
    assert code == 0 and (tmp_path / "a.png").is_file(), err
    code, _, err = l2p("generate", folder, "a red house", *sizes, "--guidance-scale", 0)
    assert code == 2 and "--guidance-scale is 0, expected 1 to 1000" in err
    code, out, _ = l2p("info", folder)
    assert code == 0 and "30, guided with 2" in out and "zhen-nan/L2P" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", L2P_VARIANTS)
def test_the_published_widths_themselves(name):
    """One block of each kind at the published widths, 0.6 B random weights in fp32, and the whole head: against fp64."""
    variant = L2P_VARIANTS[name]
    variant = replace(variant, core={**variant.core, "n_layers": 1, "n_refiner_layers": 1})
    student = randomised(PixelStudent(variant.spec())).eval()
    state = student.state_dict()
    w = Doubled({published: state[own] for published, (own, _) in names(variant).items()})
    p, generator = variant.patch_size, torch.Generator().manual_seed(2)
    x_t = torch.randn(1, 3, 2 * p, 2 * p, generator=generator)
    embeds = torch.randn(1, 9, 2560, generator=generator)
    with torch.no_grad():
        u = (
            student.velocity(x_t, torch.tensor([0.6]), Conditioning(embeds, torch.tensor([9])))[0]
            .double()
            .numpy()
        )
    told = w, x_t[0].double().numpy(), float(np.float32(0.6)), embeds[0].double().numpy()
    expected = reference.velocity(*told, variant.core, p, variant.levels)
    error = np.sqrt(((u - expected) ** 2).mean() / (expected**2).mean())
    print(f"{name}: {sum(t.numel() for t in student.parameters()):,} values, relative RMS {error:.1e}")
    assert error < 1e-4
