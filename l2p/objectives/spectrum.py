"""``spectrum``: in every small window of the picture the same amplitudes, frequency by frequency, as in the target's.

What ``energy`` asks in one number, this asks for each period and direction: a blurred edge pays, and so do lines where the
target has specks, or none. Phases are free, so that a texture need not lie where the target has it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from l2p.config import Int, Weight
from l2p.objectives.base import Objective, StepContext

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.teachers import Teacher

Window = Annotated[Int, Field(ge=4, le=512, multiple_of=2)]
LEAST = 1e-5  # power below which an amplitude counts as none: its root has no slope at zero


class SpectrumObjective(Objective):
    """:func:`spectrum_distance` between the student's picture and the batch's.

    Args:
        window: pixels a side of the windows, which overlap by half; twice the longest period that is compared.
    """

    name = "spectrum"

    def __init__(self, *, teacher: Teacher, lift: Lift, weight: Weight = 1.0, window: Window = 16) -> None:
        super().__init__(weight)
        self.window = window

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        with torch.autocast(ctx.picture.device.type, enabled=False):
            images = ctx.picture.float(), ctx.batch.images.float()
            return {"amplitude": spectrum_distance(*images, self.window)}


def spectrum_distance(x: Tensor, target: Tensor, window: int = 16) -> Tensor:
    """Mean difference of the amplitudes of pictures [B, 3, H, W] in windows of so many pixels a side, [].

    Only periods up to half a window count; in units of [-1, 1], so that white noise of deviation s has amplitudes of about s.
    """
    return (_amplitudes(x, window) - _amplitudes(target, window)).abs().mean()


def _amplitudes(x: Tensor, window: int) -> Tensor:
    """[B, 3, n, f] of the n windows at f frequencies."""
    real, imaginary = (basis.to(x.device) for basis in _waves(window))
    parts = x.unfold(2, window, window // 2).unfold(
        3, window, window // 2
    )  # [B, 3, rows, columns, window, window]
    parts = parts.flatten(4)
    return (F.linear(parts, real).square() + F.linear(parts, imaginary).square() + LEAST).sqrt()


@lru_cache(maxsize=4)
def _waves(window: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [f, window^2] under a Hann window: one of each pair of opposite frequencies, the slow ones left out."""
    places = torch.arange(window, dtype=torch.float64)
    bell = torch.hann_window(window, dtype=torch.float64)
    bell = (bell[:, None] * bell).flatten()
    bell = bell / bell.square().sum().sqrt()
    half = window // 2
    waves = [
        (v, u)
        for v in range(-half + 1, half + 1)
        for u in range(half + 1)
        if (u > 0 or v > 0) and v * v + u * u >= 4
    ]
    phase = torch.stack([(v * places[:, None] + u * places).flatten() for v, u in waves]) * (
        2 * torch.pi / window
    )
    return (phase.cos() * bell).float(), (phase.sin() * bell).float()
