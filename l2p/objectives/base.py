"""What every objective sees (a batch and the student's answer to it) and what it gives back (named terms).

Legend: B batch, H W pixels, c h w latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from l2p.errors import UserError

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.teachers import Conditioning, Teacher


@dataclass
class Batch:
    """Coupled pairs: ``noise`` eps [B, 3, H, W] and what the teacher drew from it.

    ``images`` x_0 [B, 3, H, W] in [-1, 1]; ``latents`` z_0 [B, c, h, w], normalised as the teacher has them.
    """

    images: Tensor
    latents: Tensor
    noise: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(value.to(device) for value in vars(self).values()))

    def __getitem__(self, index: slice) -> Batch:
        return replace(self, **{name: value[index] for name, value in vars(self).items()})


class StepContext:
    """One training step, as the objectives see it.

    Args:
        student: ``(x_t [B, 3, H, W], t [B], conditioning) -> x_0 [B, 3, H, W]``.
        generator: the source of every random number of this step; on the CPU, so that a step is the same everywhere.
        step: number of the optimiser step.
    """

    def __init__(
        self,
        student: Callable[[Tensor, Tensor, Conditioning], Tensor],
        teacher: Teacher,
        lift: Lift,
        batch: Batch,
        generator: torch.Generator,
        step: int = 0,
    ) -> None:
        self.student, self.teacher, self.lift = student, teacher, lift
        self.batch, self.generator, self.step = batch, generator, step

    @cached_property
    def one_step(self) -> Tensor:
        """The student's picture x_0 [B, 3, H, W] of the batch's pure noise; computed once for all objectives."""
        if "_seen" in vars(self):
            return self.student.paint(self._seen)
        return self.student(*self._pure_noise)

    @cached_property
    def latents(self) -> Tensor:
        """What the student's core takes the teacher's latents to be, z_0 [B, c, h, w]; the head is not asked."""
        return self.teacher.unpack(self.student.latents(self._seen).float())

    @cached_property
    def decoded(self) -> Tensor:
        """The teacher's decoder's picture [B, 3, H, W] of :attr:`latents`, without gradient."""
        with torch.no_grad():
            return self.teacher.decode(self.latents.detach()).clamp(-1, 1)

    @cached_property
    def _seen(self) -> Any:
        return self.student.look(*self._pure_noise)

    @property
    def _pure_noise(self) -> tuple[Tensor, Tensor, Conditioning]:
        noise = self.batch.noise
        return noise, torch.ones(len(noise), device=noise.device), self.batch.conditioning

    def randn(self, *shape: int) -> Tensor:
        """Standard normal numbers of this step, on the batch's device."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device).to(
            self.batch.images
        )

    def choose(self, fraction: float) -> Tensor | slice:
        """Indices of a random ``fraction`` of the batch, at least one sample; everything (a slice) at 1."""
        if fraction >= 1:
            return slice(None)
        count = max(1, round(fraction * len(self.batch)))
        order = torch.randperm(len(self.batch), generator=self.generator, device=self.generator.device)
        return order[:count].sort().values.to(self.batch.images.device)


class Objective(nn.Module):
    """A sum of loss terms. A subclass names its knobs as keyword arguments of ``__init__``, typed and with defaults.

    ``forward`` returns scalar terms already multiplied by their own knobs; the caller adds them and multiplies by
    ``weight``. Frozen networks are held through :class:`Frozen`, so that no optimiser or checkpoint finds them.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = at_least("weight", weight, 0)

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        shown = {
            name: value for name, value in vars(self).items() if isinstance(value, (int, float, str, tuple))
        }
        return ", ".join(
            f"{k}={v}"
            for k, v in shown.items()
            if not k.startswith("_") and k not in ("training", "dump_patches")
        )


class Frozen:
    """Holds a network without registering it with its owner; follows the device of its input."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def __call__(self, x: Tensor, **kwargs) -> list[Tensor]:
        parameter = next(self.module.parameters())
        if parameter.device != x.device:
            self.module.to(x.device)
        return self.module(x.to(parameter.dtype), **kwargs)


def at_least(name: str, value: float, low: float) -> float:
    """The value. Raises: UserError below ``low``."""
    if value < low:
        raise UserError(f"{name} must be at least {low}, got {value}")
    return value


def within(name: str, value: float, low: float, high: float) -> float:
    """The value. Raises: UserError outside (low, high]."""
    if not low < value <= high:
        raise UserError(f"{name} must be above {low} and at most {high}, got {value}")
    return value
