"""Perceptual distances: how far a picture is from another in the features of frozen networks.

A distance is named by a network (see :mod:`l2p.features`) or by a preset, and several are added with weights:

    {lpips: 0.4, pmf: 0.1}              # pMF's terms (arXiv 2601.22158)
    {lpips: 0.1, pixelgen: 0.01}        # PixelGen's
    {encoder: 1, "timm:test_vit@2,5=weights.safetensors": 0.5}

Legend: B pictures, C channels of a map, h w its grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from l2p.errors import UserError
from l2p.features.base import FeatureNetwork, widened
from l2p.features.load import load_features
from l2p.features.spec import FeatureSpec

if TYPE_CHECKING:
    from l2p.teachers import Teacher

AREA = (0.08, 1.0)  # of a random crop, as a share of the picture, and
RATIO = (3 / 4, 4 / 3)  # its width over its height
NUM_RANDOM = 4  # even numbers that a picture's crop takes


class MapDistance:
    """Mean over maps and positions of the squared difference of maps of unit length over C: [B], from 0 to 4."""

    num_random, below = 0, 1.0

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = [unit(f) for f in self.network.maps(target)]
        layers = [
            (unit(f) - g).square().sum(1).mean((1, 2))
            for f, g in zip(self.network.maps(x), wanted, strict=True)
        ]
        return torch.stack(layers).mean(0)


class LpipsDistance(MapDistance):
    """LPIPS (VGG-16) [B]; the sum is done here because the package's own divides by a norm that can be 0."""

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = [unit(f) for f in self.network.maps(widened(target))]
        found = [unit(f) for f in self.network.maps(widened(x))]
        lins = self.network.module.lins
        layers = [
            lins[i]((f - g).square()).mean((1, 2, 3))
            for i, (f, g) in enumerate(zip(found, wanted, strict=True))
        ]
        return torch.stack(layers).sum(0)


class PmfDistance(MapDistance):
    """pMF's second term (arXiv 2601.22158): pooled features of one random crop of both pictures.

    With ``v`` the network's pooled features after a layer norm without weights, ``d = |v(crop x) - v(crop y)|^2`` and the
    distance is ``d / (sg(d) + 0.01)``. It counts for pictures that were predicted at times below 0.8.
    """

    num_random, below = NUM_RANDOM, 0.8

    def __call__(self, x: Tensor, target: Tensor, even: Tensor | None = None) -> Tensor:
        if even is not None:
            size = getattr(self.network, "size", tuple(x.shape[2:]))
            x, target = (random_crops(y, even, size) for y in (x, target))
        with torch.no_grad():
            wanted = self._pooled(target)
        d = (self._pooled(x) - wanted).square().sum(1)
        return d / (d.detach() + 0.01)

    def _pooled(self, images: Tensor) -> Tensor:
        vectors = self.network.vectors(images)
        return F.layer_norm(vectors, vectors.shape[1:])


class PatchCosine(MapDistance):
    """PixelGen's second term: one minus the cosine between the patch tokens of both pictures, the mean over patches."""

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.network.maps(target)
        layers = [
            1 - F.cosine_similarity(widened(f), widened(g), dim=1, eps=1e-5).mean((1, 2))
            for f, g in zip(self.network.maps(x), wanted, strict=True)
        ]
        return torch.stack(layers).mean(0)


# Name -> the distance and the network that its paper has; `NAME:NETWORK` takes another one.
PRESETS: dict[str, tuple[type[MapDistance], str]] = {
    "lpips": (LpipsDistance, "lpips"),
    "pmf": (PmfDistance, "timm:convnextv2_base.fcmae_ft_in22k_in1k"),
    "pixelgen": (PatchCosine, "timm:vit_base_patch14_dinov2.lvd142m@11"),
}


def resolve(name: str) -> tuple[type[MapDistance], str]:
    """Distance and network of a term's name. Raises: UserError for a name that is none."""
    preset, colon, network = name.partition(":")
    if preset.partition("=")[0] == "lpips":
        return LpipsDistance, name
    if preset in PRESETS:
        distance, usual = PRESETS[preset]
        name = network if colon else usual
    else:
        distance = MapDistance
    FeatureSpec.parse(name)
    return distance, name


class PerceptualDistance:
    """A weighted sum of distances.

    Args:
        terms: a name, or weights by name.

    Raises:
        UserError: as :func:`l2p.features.load_features`, or no term of a weight above 0.
    """

    def __init__(self, terms: str | Mapping[str, float], teacher: Teacher | None = None) -> None:
        self.terms: list[tuple[float, MapDistance]] = []
        for name, weight in weights_of(terms).items():
            distance, network = resolve(name)
            self.terms.append((weight, distance(load_features(network, teacher))))

    @property
    def networks(self) -> list[FeatureNetwork]:
        return [distance.network for _, distance in self.terms]

    @property
    def num_random(self) -> int:
        """Even numbers in [0, 1) that a picture takes."""
        return max(distance.num_random for _, distance in self.terms)

    def __call__(
        self, x: Tensor, target: Tensor, even: Tensor | None = None, t: Tensor | None = None
    ) -> Tensor:
        """Distances [B] of pictures [B, 3, H, W] in [-1, 1].

        Args:
            even: numbers [B, num_random] for the crops; without them pictures are compared whole.
            t: times [B] at which x was predicted, for terms that look at clean ones alone. Leave it out where the target is a
                function of the noise, so that no time makes a picture uncertain.
        """
        total = torch.zeros(len(x), device=x.device, dtype=widened(x).dtype)
        for weight, distance in self.terms:
            given = {"even": even} if distance.num_random and even is not None else {}
            value = distance(x, target, **given)
            total = total + weight * (value if t is None else torch.where(t < distance.below, value, 0.0))
        return total


def networks_of(terms: str | Mapping[str, float]) -> list[FeatureSpec]:
    """The networks of a distance, of which nothing is loaded. Raises: UserError."""
    return [FeatureSpec.parse(resolve(name)[1]) for name in weights_of(terms)]


def weights_of(terms: str | Mapping[str, float]) -> dict[str, float]:
    """Weights by name, those of 0 left out. Raises: UserError where none is left, one is below 0, or one is no number."""
    given = {terms: 1.0} if isinstance(terms, str) else terms
    if not isinstance(given, Mapping) or not all(type(weight) in (int, float) for weight in given.values()):
        raise UserError(f"perceptual_network is {terms!r}, expected a name, or names with their weights")
    found = {str(name): float(weight) for name, weight in given.items()}
    if any(not math.isfinite(weight) or weight < 0 for weight in found.values()):
        raise UserError(f"perceptual_network: weights must be finite and at least 0, got {dict(found)}")
    found = {name: weight for name, weight in found.items() if weight}
    if not found:
        raise UserError("perceptual_network: no term has a weight above 0")
    return found


def random_crops(images: Tensor, even: Tensor, size: tuple[int, int]) -> Tensor:
    """A crop [B, 3, *size] of each picture: 8 to 100 % of its area, 3/4 to 4/3 wide, at a random place.

    Args:
        even: numbers [B, 4] in [0, 1): of area, ratio (its logarithm is even), top and left.
    """
    height, width = images.shape[2:]
    crops = []
    for image, (area, ratio, top, left) in zip(images, even.tolist(), strict=True):
        pixels = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
        wide = math.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * ratio)
        rows = min(height, max(1, round(math.sqrt(pixels / wide))))
        columns = min(width, max(1, round(math.sqrt(pixels * wide))))
        y, x = int(top * (height - rows + 1)), int(left * (width - columns + 1))
        crop = image[None, :, y : y + rows, x : x + columns]
        crops.append(F.interpolate(crop, size, mode="bilinear", antialias=True, align_corners=False))
    return torch.cat(crops)


def shrink_factor(scale: float) -> int:
    """Pixels of a side that become one, of a share of the side such as 1/2, 1/3, 1/4."""
    return round(1 / scale)


def shrink(images: Tensor, factor: int) -> Tensor:
    """Images averaged down by an integer factor; a plain pool, since the adaptive one is not deterministic on a GPU."""
    return F.avg_pool2d(images, factor) if factor > 1 else images


def unit(features: Tensor) -> Tensor:
    """Features [B, C, h, w] in float32 or wider with unit length over C; 0 stays 0, with a finite gradient."""
    features = widened(features)
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)
