"""Large latents in tiles: overlapping squares of tokens, whose pictures are blended so that no border shows.

A tile's weight rises linearly over the overlap and falls again; of two neighbours the weights add up to one.

Legend: H W tokens, T tokens a side of a tile, o tokens of overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor


def spans(size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Starts and ends of the tiles that cover ``size`` tokens: all of one length, neighbours share ``overlap`` or more."""
    if tile >= size:
        return [(0, size)]
    count = -(-(size - overlap) // (tile - overlap))
    last = size - tile
    starts = [round(number * last / (count - 1)) for number in range(count)]
    return [(start, start + tile) for start in starts]


def ramps(places: list[tuple[int, int]], unit: int) -> list[Tensor]:
    """The weight of each pixel of each tile along one axis, [tile unit]; at every pixel they add up to one.

    Args:
        places: of :func:`spans`.
        unit: pixels a token.
    """
    weights = []
    for number, (start, end) in enumerate(places):
        weight = torch.ones((end - start) * unit)
        if number:
            weight *= _rise(places[number - 1][1] - start, unit, len(weight))
        if number + 1 < len(places):
            weight *= _rise(end - places[number + 1][0], unit, len(weight)).flip(0)
        weights.append(weight)
    total = torch.zeros(places[-1][1] * unit)
    for (start, end), weight in zip(places, weights, strict=True):
        total[start * unit : end * unit] += weight
    return [
        weight / total[start * unit : end * unit]
        for (start, end), weight in zip(places, weights, strict=True)
    ]


def _rise(shared: int, unit: int, length: int) -> Tensor:
    """From 0 to 1 over the first ``shared`` tokens' pixels, then 1."""
    pixels = shared * unit
    return ((torch.arange(length) + 0.5) / max(1, pixels)).clamp(max=1)
