"""Frechet distance on native crops: what a network that reads small pictures cannot see in large ones.

The judge resamples to 128 px, as FID's network does to 299, and a 4K picture may be all blur or noise before it shows
there. So squares are cut at native pixels, at the same places in both sets, and compared as pictures of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from l2p.evaluation.frechet import FeatureStatistics, frechet_distance

SIZE = 128  # pixels a side of a crop: the judge's own


def native_crops(images: Tensor, size: int = SIZE, count: int = 4, seed: int = 0, first: int = 0) -> Tensor:
    """Square crops [B count, C, size, size] of pictures [B, C, H, W], at places that depend on seed and number alone.

    Args:
        first: number of the first picture in its set, so that batches continue each other.

    Raises:
        ValueError: pictures smaller than a crop.
    """
    height, width = images.shape[2:]
    if images.ndim != 4 or min(height, width) < size:
        raise ValueError(f"crops of {size} x {size} do not fit pictures of {list(images.shape)}")
    crops = []
    for number, picture in enumerate(images, first):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        for _ in range(count):
            y = int(torch.randint(height - size + 1, (), generator=generator))
            x = int(torch.randint(width - size + 1, (), generator=generator))
            crops.append(picture[:, y : y + size, x : x + size])
    return torch.stack(crops)


def patch_frechet(
    images: Tensor,
    reference: Tensor,
    features: Callable[[Tensor], Tensor],
    size: int = SIZE,
    count: int = 4,
    seed: int = 0,
) -> float:
    """Frechet distance between the crops of two sets of pictures, at least 0; 0 for equal sets.

    Args:
        images, reference: [B, 3, H, W] and [B', 3, H', W'] in [-1, 1].
        features: crops [N, 3, size, size] to vectors [N, d], such as the judge's ``features``.
    """
    statistics = []
    for pictures in (images, reference):
        gathered = FeatureStatistics()
        for number, picture in enumerate(pictures):
            gathered.update(features(native_crops(picture[None], size, count, seed, number)))
        statistics.append(gathered)
    return frechet_distance(*statistics)
