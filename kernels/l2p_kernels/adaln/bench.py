"""What `python -m l2p_kernels bench adaln` times: with a gated branch, as a block of a transformer calls it."""

import argparse

import torch
from torch import Tensor

from ..bench import Contest, our_impls, worst_error
from .api import adaln


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=192)


def _call(impl: str, x: Tensor, scale: Tensor, shift: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    out, total = adaln(x, scale, shift, branch=branch, gate=gate, impl=impl)
    return out + total  # one tensor that depends on both, the same sum for every path


def contest(options: argparse.Namespace, device: str, dtype: torch.dtype) -> Contest:
    def draw(batch: int, tokens: int, width: int) -> list[Tensor]:
        shapes = [
            (batch, tokens, width),
            (batch, width),
            (batch, width),
            (batch, tokens, width),
            (batch, width),
        ]
        return [torch.randn(s, device=device, dtype=dtype, requires_grad=options.backward) for s in shapes]

    ours = our_impls("chunked", device)
    small = draw(2, 33, 24)
    errors = {
        impl: worst_error(lambda *x, i=impl: _call(i, *x), lambda *x: _call("reference", *x), small)
        for impl in ours
    }
    inputs = draw(options.batch, options.tokens, options.width)
    paths = {impl: lambda impl=impl: _call(impl, *inputs) for impl in [*ours, "reference"]}
    return Contest(f"adaln {options.dtype} {list(inputs[0].shape)}", inputs, paths, errors=errors)
