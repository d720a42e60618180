"""A tiny teacher, a lift for it, and students of every kind; random weights with nothing left at zero."""

from __future__ import annotations

import pytest
import torch

from l2p.lift import Lift
from l2p.recipe import HeadConfig, StudentConfig
from l2p.students.build import from_teacher
from l2p.students.student import PixelStudent
from l2p.teachers import Conditioning, Teacher, load_teacher

HEADS = {
    "linear": HeadConfig("linear"),
    "patch": HeadConfig("patch", fine_patch=4, width=32, num_blocks=2, head_dim=16, tile=4, halo=2),
    "unet": HeadConfig("unet", width=4),
}


@pytest.fixture(scope="session")
def student_config():
    """Recipe section of a tiny student: ``student_config(kind, **changes)``."""
    return lambda kind="linear", **changes: StudentConfig(head=HEADS[kind], **changes)


@pytest.fixture(scope="session")
def randomised():
    """``randomised(module, std)``: noise on every parameter, so that no path is switched off by a zero."""

    def add_noise(module: torch.nn.Module, std: float = 0.05) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(std * torch.randn(parameter.shape, generator=generator))
        return module

    return add_noise


@pytest.fixture(scope="session")
def captions():
    """``captions(lengths)``: random features of captions of these lengths, zero beyond them."""

    def draw(lengths: list[int]) -> Conditioning:
        embeds = torch.randn(len(lengths), max(lengths), 32, generator=torch.Generator().manual_seed(12))
        counts = torch.tensor(lengths)
        return Conditioning(embeds * (torch.arange(max(lengths)) < counts[:, None])[..., None], counts)

    return draw


@pytest.fixture(scope="session")
def teacher(tiny_pipeline, randomised) -> Teacher:
    teacher = load_teacher(tiny_pipeline)
    randomised(teacher.transformer)
    return teacher


@pytest.fixture(scope="session")
def lift() -> Lift:
    generator = torch.Generator().manual_seed(13)
    basis = torch.linalg.qr(torch.randn(768, 64, generator=generator, dtype=torch.float64))[0]
    offset = 0.2 * torch.randn(768, generator=generator, dtype=torch.float64)
    return Lift(basis, scale=0.4, offset=offset, r2=0.8, r2_lstsq=0.9, r2_pca=0.95)


@pytest.fixture(params=HEADS)
def student(request, teacher, lift, student_config, randomised) -> PixelStudent:
    student = from_teacher(teacher, lift, student_config(request.param), size=(32, 48))
    return randomised(student, std=0.02).eval()
