"""Terms whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from l2p.objectives.color import EDGE, ColorObjective
from l2p.objectives.energy import EnergyObjective


def context(picture, images):
    return SimpleNamespace(picture=picture, batch=SimpleNamespace(images=images))


def test_color_sees_casts_and_no_detail():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    board = 0.2 * (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16))
    color = ColorObjective(teacher=None, lift=None, cells=(2, 8))
    for value in color(context(images + board, images)).values():
        assert float(value) == pytest.approx(0, abs=1e-6)
    for value in color(context(images + 0.1, images)).values():
        assert float(value) == pytest.approx((0.1**2 + EDGE**2) ** 0.5 - EDGE, rel=1e-4)


def test_energy_asks_for_as_much_texture_not_for_the_same():
    generator = torch.Generator().manual_seed(1)
    texture, other = (0.2 * torch.randn(1, 3, 64, 64, generator=generator) for _ in range(2))
    energy = EnergyObjective(teacher=None, lift=None)
    same, moved, blurred = (
        float(energy(context(x, texture))["texture"]) for x in (texture, other, torch.zeros_like(texture))
    )
    assert same == 0 and moved < 0.2 * blurred
