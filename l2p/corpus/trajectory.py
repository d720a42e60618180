"""Points on the way from noise to picture, noted while a teacher's sampler passes them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from l2p.errors import UserError

if TYPE_CHECKING:
    from l2p.teachers import Teacher


class Recorder:
    """Notes the latents at which a teacher's sampler asks for a velocity, through a copy of that teacher."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = copy.copy(teacher)
        self.states: dict[float, Tensor] = {}  # by time; a solver that asks twice at a time counts once

        def velocity(z_t: Tensor, t: Tensor, *args, **kwargs) -> Tensor:
            self.states.setdefault(float(t[0]), z_t)
            return teacher.velocity(z_t, t, *args, **kwargs)

        self.teacher.velocity = velocity

    def pick(self, count: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Points [B, count, c, h, w] float16 evenly along the way, without its noise, which the seed gives; and their times."""
        if not count:
            return None, None
        times = sorted(self.states, reverse=True)[1:]
        if count > len(times):
            raise UserError(
                f"corpus.trajectory_points is {count}, but this teacher's sampler passes {len(times)} points"
            )
        chosen = [times[round(place)] for place in np.linspace(0, len(times) - 1, count)]
        points = torch.stack([self.states[t].to(torch.float16) for t in chosen], 1)
        return points.cpu().numpy(), np.array(chosen, np.float32)
