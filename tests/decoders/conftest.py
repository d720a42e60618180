"""A tiny teacher and a decoder of its latents, fourfold, with nothing left at zero where a test wants that."""

from __future__ import annotations

import pytest
import torch

from l2p.decoders.build import from_teacher
from l2p.decoders.pid import PidStudent
from l2p.recipe import HeadConfig
from l2p.teachers import Teacher, load_teacher

HEAD = HeadConfig(fine_patch=4, width=32, num_blocks=1, head_dim=16, tile=4, halo=2)


def shake(module: torch.nn.Module, std: float = 0.05) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="session")
def teacher(tiny_pipeline) -> Teacher:
    teacher = load_teacher(tiny_pipeline)
    shake(teacher.transformer)
    return teacher


@pytest.fixture
def fresh(teacher) -> PidStudent:
    """Untrained, 128 px from 32."""
    torch.manual_seed(0)
    return from_teacher(teacher, 4, HEAD, adapter_width=16, features=16, height=128, width=128).eval()


@pytest.fixture
def decoder(fresh) -> PidStudent:
    """Every gate open, every layer with something to say."""
    return shake(fresh, 0.02)


@pytest.fixture
def latents() -> torch.Tensor:
    """Of a picture of 64 x 48 pixels."""
    return torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(3))
