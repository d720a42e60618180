"""What `python -m l2p_kernels bench gated_residual` times."""

import argparse

import torch
from torch import Tensor

from ..bench import Contest, our_impls, worst_error
from .api import gated_residual


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=192)


def contest(options: argparse.Namespace, device: str, dtype: torch.dtype) -> Contest:
    def draw(batch: int, tokens: int, width: int) -> list[Tensor]:
        shapes = [(batch, tokens, width), (batch, tokens, width), (batch, width)]
        return [torch.randn(s, device=device, dtype=dtype, requires_grad=options.backward) for s in shapes]

    ours = our_impls("chunked", device)
    small = draw(2, 33, 24)
    errors = {
        impl: worst_error(
            lambda *x, i=impl: gated_residual(*x, impl=i),
            lambda *x: gated_residual(*x, impl="reference"),
            small,
        )
        for impl in ours
    }
    inputs = draw(options.batch, options.tokens, options.width)
    paths = {impl: lambda impl=impl: gated_residual(*inputs, impl=impl) for impl in [*ours, "reference"]}
    return Contest(f"gated_residual {options.dtype} {list(inputs[0].shape)}", inputs, paths, errors=errors)
