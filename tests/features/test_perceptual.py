"""Each preset against its formula in float64, terms composed, and the objectives that look through them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from l2p.errors import UserError
from l2p.features import PerceptualDistance, load_features
from l2p.features.perceptual import PRESETS, random_crops, resolve, weights_of


@pytest.fixture
def doubled(models):
    """`doubled(name)`: the network and its name, in float64."""
    held = []

    def make(name: str, layers: str = ""):
        text = f"timm:{name}{layers}={models[name][1]}"
        held.append(load_features(text))
        held[-1].module.double()
        return held[-1], text

    yield make
    for network in held:
        network.module.float()


def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 3, 160, 160, generator=generator, dtype=torch.float64) * 2 - 1


def test_pmf_is_its_formula(doubled):
    network, name = doubled("test_convnext")
    x, y = pair()
    even = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    crops = [random_crops(z, even, (160, 160)) for z in (x, y)]
    found = PerceptualDistance(f"pmf:{name}")(x, y, even)
    for k in range(3):
        v, w = (network.vectors(crop[k : k + 1])[0] for crop in crops)
        v, w = ((u - u.mean()) / (u.var(unbiased=False) + 1e-5).sqrt() for u in (v, w))
        d = (v - w).square().sum()
        assert found[k].item() == pytest.approx((d / (d + 0.01)).item(), rel=1e-9)
    # the divisor is a number: the gradient is that of d alone, over it
    x.requires_grad_()
    distance = PerceptualDistance(f"pmf:{name}")
    (slope,) = torch.autograd.grad(distance(x, y, even).sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def raw(z):
        v, w = (F.layer_norm(network.vectors(random_crops(u, even, (160, 160))), (64,)) for u in (z, y))
        return (v - w).square().sum(1)

    with torch.no_grad():
        rise = (raw(x + 1e-6 * direction) - raw(x - 1e-6 * direction)) / 2e-6 / (raw(x) + 0.01)
    assert (slope * direction).sum().item() == pytest.approx(rise.sum().item(), rel=1e-5)


def test_pmf_counts_below_its_time_alone(doubled):
    _, name = doubled("test_convnext")
    x, y = pair()
    distance = PerceptualDistance({f"pmf:{name}": 0.5})
    found = distance(x, y, t=torch.tensor([0.79, 0.8, 1.0]))
    assert found[0] == distance(x, y)[0] > 0 and found[1] == found[2] == 0


def test_pixelgen_is_its_formula(doubled):
    network, name = doubled("test_vit", "@4")
    x, y = pair()
    f, g = (network.maps(z)[0].flatten(2).transpose(1, 2) for z in (x, y))  # [B, patches, C]
    wanted = 1 - ((f * g).sum(2) / (f.norm(dim=2) * g.norm(dim=2))).mean(1)
    found = PerceptualDistance(f"pixelgen:{name}")(x, y)
    assert torch.allclose(found, wanted, rtol=1e-9)
    assert PerceptualDistance(f"pixelgen:{name}")(x, x).abs().max() < 1e-9


@pytest.mark.slow
def test_lpips_is_the_package_s_own_with_weights_from_a_file(tmp_path):
    import lpips
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    names = {name: f"features.{name.split('.', 1)[1]}" for name in network.net.state_dict()}
    file = tmp_path / "vgg16.safetensors"
    save_file({names[name]: value for name, value in network.net.state_dict().items()}, file)
    x, y = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(k)) * 2 - 1 for k in (0, 1))
    found = PerceptualDistance(f"lpips={file}")(x, y)
    with torch.no_grad():
        assert torch.allclose(found, network(x, y).flatten(), rtol=1e-3)
    save_file({"features.0.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="no VGG-16 of torchvision: features.0.bias is missing"):
        load_features(f"lpips={file}")


def test_terms_add_up_with_their_weights(doubled):
    _, vit = doubled("test_vit", "@1,3")
    _, convnext = doubled("test_convnext")
    x, y = pair()
    parts = [PerceptualDistance(name)(x, y) for name in (vit, f"pmf:{convnext}")]
    found = PerceptualDistance({vit: 0.5, f"pmf:{convnext}": 2.0, "lpips": 0.0})(x, y)
    assert torch.allclose(found, 0.5 * parts[0] + 2 * parts[1], rtol=1e-12)


def test_what_papers_used_is_what_the_presets_name():
    assert resolve("pmf")[1] == "timm:convnextv2_base.fcmae_ft_in22k_in1k"
    assert resolve("pixelgen")[1] == "timm:vit_base_patch14_dinov2.lvd142m@11"
    assert set(PRESETS) == {"lpips", "pmf", "pixelgen"}
    assert weights_of({"lpips": 0.4, "pmf": 0.1, "encoder": 0}) == {"lpips": 0.4, "pmf": 0.1}


def test_crops_have_the_areas_and_ratios_they_were_asked_for():
    ramp = torch.linspace(-1, 1, 200).expand(1, 3, 200, 200)
    whole = random_crops(ramp, torch.tensor([[1.0, 0.5, 0.0, 0.0]]), (200, 200))
    assert torch.equal(whole, ramp)
    for area, ratio, left in ((0.0, 0.0, 0.0), (0.5, 1.0, 0.999), (0.3, 0.5, 0.4)):
        crop = random_crops(ramp, torch.tensor([[area, ratio, 0.0, left]]), (400, 400))
        pixels, wide = 200**2 * (0.08 + 0.92 * area), (3 / 4) ** (1 - 2 * ratio)
        columns = round(math.sqrt(pixels * wide))
        seen = (crop.max() - crop.min()).item() * 199 / 2 + 1
        assert seen == pytest.approx(columns, abs=1.5)
        assert crop.min().item() == pytest.approx(-1 + 2 * int(left * (201 - columns)) / 199, abs=0.01)
