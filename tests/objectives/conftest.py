from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from l2p import flow
from l2p.lift import Lift
from l2p.objectives import Batch, StepContext
from l2p.patches import patchify
from l2p.recipe import HeadConfig, StudentConfig
from l2p.students.build import from_teacher
from l2p.students.student import PixelStudent
from l2p.teachers import load_teacher
from l2p.teachers.protocol import Conditioning, LatentGeometry


class SmallEncoder(nn.Module):
    """The outline of a diffusers VAE encoder: conv_in and three down blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 4, 3, padding=1)
        self.down_blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(3))


class Student:
    """A function ``x_0(x_t, t)`` in the two parts that a student has."""

    def __init__(self, predict) -> None:
        self.predict = predict

    def __call__(self, x_t, t, conditioning, r=None):
        return self.forward_head(self.forward_features(x_t, t, conditioning, r))

    def forward_features(self, x_t, t, conditioning, r=None):
        return x_t, t

    def forward_head(self, seen):
        return self.predict(*seen)


@pytest.fixture
def lift() -> Lift:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(48, 16, generator=generator, dtype=torch.float64))
    offset = torch.randn(48, generator=generator, dtype=torch.float64)
    return Lift(basis, 1.5, offset, 0.8, 0.9, 0.95)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return SimpleNamespace(
        name="small",
        geometry=LatentGeometry(channels=4, compression=2, packing=2),
        vae=SimpleNamespace(encoder=SmallEncoder()),
        encode=lambda images: nn.functional.avg_pool2d(images, 2)[:, [0, 1, 2, 0]],
        pack=lambda z: patchify(z, 2),
        text_encoder=SimpleNamespace(width=1),
    )


@pytest.fixture
def context(teacher, lift):
    """Makes a step: the student answers `x_0(x_t, t)`, the pictures are given or drawn."""

    def make(student, images=None, noise=None, seed=0, size=16, count=4, num_steps=1) -> StepContext:
        generator = torch.Generator().manual_seed(123)
        if images is None:
            images = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
        if noise is None:
            noise = torch.randn(images.shape, generator=generator)
        latents = teacher.encode(images) if images.shape[-1] > 1 else images
        conditioning = Conditioning(
            torch.zeros(len(images), 1, 1), torch.ones(len(images), dtype=torch.int64)
        )
        batch = Batch(images, latents, noise, conditioning)
        step = torch.Generator().manual_seed(seed)
        return StepContext(Student(student), teacher, lift, batch, step, num_steps=num_steps)

    return make


@pytest.fixture(scope="module")
def real(tiny_pipeline):
    """A teacher of the real class with nothing left at zero, and a lift of its size."""
    teacher = load_teacher(tiny_pipeline)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in teacher.transformer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    basis = torch.linalg.qr(torch.randn(768, 64, generator=generator, dtype=torch.float64))[0]
    offset = 0.2 * torch.randn(768, generator=generator, dtype=torch.float64)
    return teacher, Lift(basis, 0.4, offset, 0.8, 0.9, 0.95)


@pytest.fixture
def step(real):
    """``step(student=None)``: a step of two pictures of a fresh student, whose core is told at most time 0.9."""
    teacher, lift = real

    def make(student: PixelStudent | None = None) -> StepContext:
        if student is None:
            head = HeadConfig("patch", fine_patch=8, width=32, num_blocks=1, head_dim=16, tile=4, halo=2)
            torch.manual_seed(5)
            student = from_teacher(
                teacher, lift, StudentConfig(max_timestep=0.9, project_noise=True, head=head)
            )
        noise = torch.cat([flow.noise([seed], 3, 32, 48) for seed in (1, 2)])
        images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1
        with torch.no_grad():
            latents, words = teacher.encode(images), teacher.text_encoder(["a lake", "stars above a house"])
        return StepContext(student, teacher, lift, Batch(images, latents, noise, words), torch.Generator())

    return make
