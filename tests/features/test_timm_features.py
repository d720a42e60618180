"""Feature networks of timm: the same numbers as timm's own forward, shared, strict, and one line for each mistake."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from l2p.errors import UserError
from l2p.features import FeatureSpec, is_non_commercial, license_of, load_features


def pictures(count=2, height=160, width=160, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def as_trained(model, images):
    """Normalised by timm's data config."""
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return ((images + 1) / 2 - mean) / std


@pytest.mark.parametrize(("name", "layers"), [("test_vit", [1, 5]), ("test_convnext", [0, 2])])
def test_features_are_timms_own(models, name, layers):
    model, file = models[name]
    chosen = ",".join(map(str, layers))
    images = pictures()
    x = as_trained(model, images)
    wanted = model.forward_intermediates(
        x, indices=layers, norm=True, output_fmt="NCHW", intermediates_only=True
    )
    network = load_features(f"timm:{name}@{chosen}={file}")
    found = network.maps(images)
    assert all(torch.allclose(f, g, rtol=1e-5, atol=1e-5) for f, g in zip(found, wanted, strict=True))
    assert network.channels == [f.shape[1] for f in wanted]
    assert torch.allclose(network.vectors(images), torch.cat([f.mean((2, 3)) for f in wanted], 1), atol=1e-5)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert torch.allclose(load_features(f"timm:{name}={file}").vectors(images), pooled, atol=1e-5)


def test_pictures_of_other_sizes_are_resized_with_antialiasing(models):
    model, file = models["test_vit"]
    network = load_features(f"timm:test_vit@-1={file}")
    images = pictures(1, 400, 400)
    small = F.interpolate(images, (160, 160), mode="bicubic", antialias=True)
    assert torch.allclose(network.prepare(images), as_trained(model, small), atol=1e-5)
    # a wide picture keeps its aspect, in whole patches of about as many pixels
    assert network.input_size(300, 600) == (112, 224)
    assert network.maps(pictures(1, 300, 600))[0].shape[2:] == (7, 14)
    fixed = load_features("timm:test_maxvit=random")
    assert fixed.input_size(300, 600) == (160, 160) and fixed.maps(pictures(1, 90, 180))[0].shape[2:] == (
        5,
        5,
    )


def test_a_network_is_frozen_and_shared_and_its_gradient_is_that_of_finite_differences(models):
    _, file = models["test_vit"]
    network, other = (load_features(f"timm:test_vit@{k}={file}") for k in (0, 1))
    assert network.module is other.module
    assert not any(p.requires_grad for p in network.module.parameters()) and not network.module.training
    module = network.module.double()
    try:
        x = pictures(1).double().requires_grad_()
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

        def loss(y):
            return network.maps(y)[0].square().mean()

        (slope,) = torch.autograd.grad(loss(x), x)
        step = 1e-6
        with torch.no_grad():
            rise = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
        assert (slope * direction).sum().item() == pytest.approx(rise.item(), rel=1e-6)
        network.set_gradient_checkpointing()
        (again,) = torch.autograd.grad(loss(x), x)
        assert torch.allclose(slope, again, rtol=1e-12)
    finally:
        module.float().set_grad_checkpointing(False)


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone():
    torch.manual_seed(3)
    first = load_features("timm:test_convnext=random").vectors(pictures())
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first, load_features("timm:test_convnext=random").vectors(pictures()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_smal_patch16_224", "did you mean vit_small_patch16_224"),
        ("timm:vit_small_patch16_224.nope", "expected one of vit_small_patch16_224.augreg_in1k"),
        ("timm:test_vit@9={vit}", "no layer 9, expected -6 to 5"),
        ("timm:test_vit={convnext}", "does not hold the weights of timm's test_vit: Missing key"),
        ("timm:test_vit=/none.safetensors", "no weights at /none.safetensors"),
        ("timm:test_vit=weights.pth", "read from a .safetensors file, got 'weights.pth'"),
        ("timm:test_vit=", "read from a .safetensors file"),
        ("timm:test_vit@a", "layers are numbers such as @3,7,11, got 'a'"),
        ("timm:", "no feature network"),
        ("encoder", "there is none here"),
        ("encoder=x.safetensors", "has its weights"),
        ("timm:test_vit", "fetch model.safetensors of timm/test_vit"),
        ("timm:hf-hub:someone/model", "fetch model.safetensors of someone/model"),
        ("timm:hf-hub:nobody", "'nobody' is no name on the Hub"),
    ],
)
def test_mistakes_are_one_clear_line(models, monkeypatch, name, message):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name = name.format(vit=models["test_vit"][1], convnext=models["test_convnext"][1])
    with pytest.raises(UserError, match=message) as error:
        load_features(name)
    assert "\n" not in str(error.value)


def test_a_file_with_a_weight_more_or_of_another_shape_is_refused(models, tmp_path):
    state = load_file(models["test_convnext"][1])
    first = next(iter(state))
    for other in ({**state, "extra": torch.zeros(1)}, {**state, first: torch.zeros(2, 2)}):
        save_file(other, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match="does not hold the weights"):
            load_features(f"timm:test_convnext={tmp_path / 'other.safetensors'}")
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is no safetensors file"):
        load_features(f"timm:test_convnext={tmp_path / 'other.safetensors'}")


def test_a_model_without_intermediate_features_gives_vectors_alone(models, monkeypatch):
    _, file = models["test_vit"]
    network = load_features(f"timm:test_vit={file}")
    monkeypatch.setattr(network, "_count", 0)
    assert network.vectors(pictures()).shape == (2, 64)
    with pytest.raises(UserError, match="shows no intermediate features"):
        network.maps(pictures())


def test_a_model_that_somebody_published_is_read_with_its_own_config(models, monkeypatch, tmp_path):
    from l2p.files import write_json
    from l2p.hub import client

    model, file = models["test_vit"]
    (tmp_path / "model.safetensors").write_bytes(file.read_bytes())
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 160, 160], "license": "mit"}
    write_json(
        tmp_path / "config.json", {"architecture": "test_vit", "num_classes": 10, "pretrained_cfg": own}
    )
    asked = []
    monkeypatch.setattr(client, "download", lambda name, files: asked.append((str(name), files)) or tmp_path)
    network = load_features("timm:hf-hub:someone/model@v2@3")
    assert asked == [("someone/model@v2", ("config.json", "model.safetensors"))]
    images = pictures()
    x = ((images + 1) / 2 - torch.tensor(own["mean"]).view(3, 1, 1)) / 0.5
    wanted = model.forward_intermediates(x, indices=[3], norm=True, intermediates_only=True)
    assert torch.allclose(network.maps(images)[0], wanted[0], atol=1e-5)


def test_names_are_taken_apart_and_put_together():
    for text in ("encoder", "transformer@2,-1", "timm:a.b@3,7=c/d@1=e.safetensors", "timm:hf-hub:u/n@main@2"):
        assert str(FeatureSpec.parse(text)) == text
    spec = FeatureSpec.parse("timm:hf-hub:u/n@main@2,3")
    assert (spec.model, spec.layers) == ("hf-hub:u/n@main", (2, 3))
    assert spec.identity == FeatureSpec.parse("timm:hf-hub:u/n@main").identity == "timm:hf-hub:u/n@main"


def test_licences_are_timms():
    known = {
        "timm:vit_small_patch14_dinov2.lvd142m": "apache-2.0",
        "timm:test_vit=random": "none needed: untrained",
    }
    known["timm:convnextv2_base.fcmae_ft_in22k_in1k@2"] = "cc-by-nc-4.0"
    for name, license in known.items():
        assert license_of(FeatureSpec.parse(name)) == license
    assert is_non_commercial("cc-by-nc-4.0") and not is_non_commercial("apache-2.0")
    assert not is_non_commercial("not recorded")
