"""`torch.compile(fullgraph=True)` with its default backend: every operator, forward and backward, equals eager."""

import shutil

import pytest
import torch

from .adaln import adaln
from .bench import worst_error
from .gated_residual import gated_residual
from .patch_attention import patch_attention
from .pixel_film import pixel_film

GRID, TOKENS = (1, 9, 10, 2, 16), (2, 5, 16)


def _attention(q, k, v, global_k, global_v, norm):
    return patch_attention(
        q * 2, k, v, tile=4, halo=2, global_k=global_k, global_v=global_v, q_norm=norm, k_norm=norm
    )


def _adaln(x, scale, shift, branch, gate):
    out, total = adaln(x * 2, scale, shift, branch=branch, gate=gate)
    return out + total


def _gated_residual(x, branch, gate):
    return gated_residual(x * 2, branch, gate)


def _pixel_film(pixels, tokens, weight, bias):
    return pixel_film(pixels * 2, tokens, weight, bias)


MODELS = {
    _attention: (GRID, GRID, GRID, (1, 3, 2, 16), (1, 3, 2, 16), (16,)),
    _adaln: (TOKENS, (2, 16), (2, 16), TOKENS, (2, 16)),
    _gated_residual: (TOKENS, TOKENS, (2, 16)),
    _pixel_film: ((5, 4, 3), (5, 8), (4, 2, 3, 8), (4, 2, 3)),
}


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__.strip("_"))
def test_inductor(model):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) for shape in MODELS[model]]
    assert worst_error(torch.compile(model, fullgraph=True), model, inputs) <= 1e-5
