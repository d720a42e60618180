"""Distances between sets of pictures in the spaces of feature networks: of any prompts, any folder, several spaces at once.

For each space: the Frechet distance to the reference, the unbiased kernel distance, precision and recall, and the Frechet
distance as a ratio to the *validation* distance, that between two halves of the reference. The mean ratio over the spaces is
``fdr`` (FD-loss's FDr with the halves in the place of ImageNet's validation set): about 1 for a set like the reference, but
for the number of pictures, which a Frechet distance grows with the fewer they are.

Pictures are dealt out and chosen by a checksum of their pixels, so that nothing depends on their order or on the batches they
come in; memory does not grow with their number.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2p.evaluation.distances import KEPT, K
from l2p.evaluation.frechet import FeatureStatistics, frechet_distance
from l2p.evaluation.kid import kernel_distance
from l2p.evaluation.precision_and_recall import precision_recall
from l2p.features import FeatureNetwork
from l2p.images import to_uint8
from l2p.runtime import no_autocast

BATCH = 16  # pictures in one pass of a network


class SpaceFigures:
    """One set of pictures in the space of one network.

    Args:
        limit: vectors kept, of the pictures of the smallest checksums, for what needs more than two moments.
    """

    def __init__(self, network: FeatureNetwork, limit: int = KEPT) -> None:
        self.network, self.limit = network, limit
        self.all, self.halves = FeatureStatistics(), (FeatureStatistics(), FeatureStatistics())
        self._kept: list[tuple[int, Tensor]] = []

    @torch.no_grad()
    def update(self, images: Tensor) -> None:
        """Add pictures [B, 3, H, W] in [-1, 1]."""
        keys = [zlib.crc32(picture.tobytes()) for picture in to_uint8(images)]
        with no_autocast(images):
            vectors = torch.cat([self.network.vectors(part.float()) for part in images.split(BATCH)])
        vectors = vectors.to("cpu", torch.float64)
        if not torch.isfinite(vectors).all():
            raise ValueError(f"{self.network.name} gives features that are not finite")
        self.all.update(vectors)
        odd = torch.tensor([key & 1 for key in keys], dtype=torch.bool)
        for half, chosen in zip(self.halves, (odd, ~odd), strict=True):
            half.update(vectors[chosen])
        self._kept += zip(keys, vectors, strict=True)
        if len(self._kept) > 2 * self.limit:
            self._prune()

    def _prune(self) -> None:
        self._kept = sorted(self._kept, key=lambda pair: pair[0])[: self.limit]

    @property
    def vectors(self) -> Tensor:
        """Those kept, [N, d], in the order of their checksums."""
        self._prune()
        return torch.stack([vector for _, vector in self._kept])

    @property
    def validation(self) -> float | None:
        """Frechet distance between the halves; None where one is too small."""
        return frechet_distance(*self.halves) if min(half.count for half in self.halves) > 1 else None

    def report(self, reference: SpaceFigures) -> dict[str, Any]:
        """JSON values of this set against a reference."""
        values: dict[str, Any] = {"num_images": self.all.count, "dimensions": len(self.all.mean)}
        if min(self.all.count, reference.all.count) > 1:
            values["frechet"] = frechet_distance(self.all, reference.all)
            values["kernel"] = kernel_distance(self.vectors, reference.vectors)
            validation = reference.validation
            values["frechet_validation"] = validation
            values["frechet_ratio"] = values["frechet"] / validation if validation else None
        if min(len(self._kept), len(reference.vectors)) > K:
            values["precision"], values["recall"] = precision_recall(self.vectors, reference.vectors, K)
        return values


class Spaces:
    """One set of pictures in several spaces."""

    def __init__(self, networks: Sequence[FeatureNetwork]) -> None:
        self.figures = {network.name: SpaceFigures(network) for network in networks}

    def update(self, images: Tensor) -> None:
        """Add pictures [B, 3, H, W] in [-1, 1]."""
        for figures in self.figures.values():
            figures.update(images)

    def report(self, reference: Spaces) -> dict[str, Any]:
        """``features``: figures by space; ``fdr``: the mean of their ratios, None where one has none."""
        if not self.figures:
            return {}
        features = {name: figures.report(reference.figures[name]) for name, figures in self.figures.items()}
        ratios = [values.get("frechet_ratio") for values in features.values()]
        known = all(ratio is not None for ratio in ratios)
        return {"features": features, "fdr": sum(ratios) / len(ratios) if known else None}


def describe(networks: Sequence[FeatureNetwork], seen: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Licence of each space, and whether a loss saw it.

    Args:
        seen: licence by identity of the networks that losses saw.
    """
    return {
        network.name: {"license": network.license, "trained_on": network.spec.identity in seen}
        for network in networks
    }
