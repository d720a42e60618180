"""What `python -m l2p_kernels bench pixel_film` times."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bench import Contest, our_impls, worst_error
from .api import pixel_film


def linear_film(pixels: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The usual formulation: one linear layer writes the whole modulation, then it is applied."""
    modulation = F.linear(tokens, weight.flatten(0, 2), bias.flatten()).view(-1, *bias.shape)
    return pixels * (1 + modulation[:, :, 0]) + modulation[:, :, 1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=1024, help="patches (1024: a picture of 512 px)")
    parser.add_argument("--pixels", type=int, default=256, help="pixels a patch (256: a side of 16)")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--width", type=int, default=256, help="token width")


def contest(options: argparse.Namespace, device: str, dtype: torch.dtype) -> Contest:
    def draw(count: int, places: int, channels: int, width: int) -> list[Tensor]:
        shapes = [
            (count, places, channels),
            (count, width),
            (places, 2, channels, width),
            (places, 2, channels),
        ]
        scales = (1, 1, width**-0.5, 1)
        return [
            (torch.randn(s, device=device, dtype=dtype) * f).requires_grad_(options.backward)
            for s, f in zip(shapes, scales, strict=True)
        ]

    ours = our_impls("chunked", device)
    small = draw(33, 4, 5, 24)
    errors = {
        impl: worst_error(
            lambda *x, i=impl: pixel_film(*x, impl=i), lambda *x: pixel_film(*x, impl="reference"), small
        )
        for impl in ours
    }
    inputs = draw(options.tokens, options.pixels, options.channels, options.width)
    paths = {impl: lambda impl=impl: pixel_film(*inputs, impl=impl) for impl in ours}
    paths["linear + FiLM"] = lambda: linear_film(*inputs)
    title = f"pixel_film {options.dtype} pixels {list(inputs[0].shape)}, tokens of {options.width}"
    return Contest(title, inputs, paths, errors=errors)
