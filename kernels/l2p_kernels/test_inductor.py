"""`torch.compile(fullgraph=True)` with its default backend: every operator, forward and backward, equals eager."""

import shutil

import pytest
import torch

from .adaln import adaln
from .bench import worst_error
from .patch_attention import patch_attention

GRID, TOKENS = (1, 9, 10, 2, 16), (2, 5, 16)


def _attention(q, k, v, norm):
    return patch_attention(q * 2, k, v, tile=4, halo=2, q_norm=norm, k_norm=norm)


def _adaln(x, scale, shift, branch, gate):
    out, total = adaln(x * 2, scale, shift, branch=branch, gate=gate)
    return out + total


MODELS = {
    _attention: (GRID, GRID, GRID, (16,)),
    _adaln: (TOKENS, (2, 16), (2, 16), TOKENS, (2, 16)),
}


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__.strip("_"))
def test_inductor(model):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) for shape in MODELS[model]]
    assert worst_error(torch.compile(model, fullgraph=True), model, inputs) <= 1e-5
