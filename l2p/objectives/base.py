"""What every objective sees (a batch and the student's answer to it) and what it gives back (named terms).

Legend: B batch, H W pixels, c h w latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from l2p import distributed, flow
from l2p.config import CriticUpdates, LearningRate, Weight
from l2p.errors import UserError
from l2p.features import FeatureNetwork, FeatureSpec, PerceptualDistance
from l2p.seeds import derive_seed

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import Recipe, StageConfig
    from l2p.students.student import CoreOutput, PixelStudent
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


@dataclass(frozen=True)
class BatchShard:
    """Which part of a step's batch is at hand: number `index` of `count` equal ones, in the batch's order."""

    index: int = 0
    count: int = 1

    def of(self, total: int) -> slice:
        """The part's place among `total` things."""
        size = total // self.count
        return slice(self.index * size, (self.index + 1) * size)


FULL_BATCH = BatchShard()


class StepContext:
    """One training step, as the objectives see it.

    Args:
        student: ``(x_t [B, 3, H, W], t [B], conditioning, r [B]) -> x_0 [B, 3, H, W]``, r being where its step ends; in two
            parts too, ``forward_features`` and ``forward_head``, as :class:`l2p.students.student.PixelStudent` has them.
        generator: its seed is that of every stream of random numbers of this step, see :meth:`purpose`.
        step: number of the optimiser step.
        num_steps: steps the student draws a picture in.
        share: which part of the step's batch this is, where processes or accumulation divide it. Random numbers are those
            of the whole batch, of which the part gets its own: so the step is the same however it is divided.
    """

    def __init__(
        self,
        student: PixelStudent,
        teacher: Teacher,
        lift: Lift,
        batch: Batch,
        generator: torch.Generator,
        step: int = 0,
        num_steps: int = 1,
        share: BatchShard = FULL_BATCH,
    ) -> None:
        self.student, self.teacher, self.lift, self.share = student, teacher, lift, share
        self.batch, self.step, self.num_steps = batch, step, num_steps
        self._streams, self._purpose = {"": generator}, ""

    @property
    def generator(self) -> torch.Generator:
        """The source of the random numbers of the present purpose; on the CPU, so that a step is the same everywhere."""
        if self._purpose not in self._streams:
            seed = derive_seed(self._streams[""].initial_seed(), self._purpose)
            self._streams[self._purpose] = torch.Generator().manual_seed(seed)
        return self._streams[self._purpose]

    @contextmanager
    def purpose(self, name: str) -> Iterator[StepContext]:
        """Random numbers in the ``with`` come from a stream of this name, and go on where it stood.

        So a term's numbers do not depend on which other terms there are, and rows of an ablation stay paired.
        """
        before, self._purpose = self._purpose, name
        try:
            yield self
        finally:
            self._purpose = before

    @cached_property
    def picture(self) -> Tensor:
        """The student's picture x_0 [B, 3, H, W] of the batch's pure noise; computed once for all objectives."""
        with torch.enable_grad():
            return self.student.forward_head(self._core_output).to(self.batch.noise.dtype)

    @cached_property
    def latents(self) -> Tensor:
        """What a one-step student's core takes the teacher's latents to be, z_0 [B, c, h, w]; the head is not asked."""
        with torch.enable_grad():
            return self.teacher.unpack(self.student.latents(self._core_output).float())

    @property
    def core_features(self) -> Tensor:
        """The core's features [B, h, w, dim] of the batch's pure noise, which the head reads; the head is not asked."""
        return self._core_output.inputs[0]

    def answer(self, space: Literal["pixels", "latents"]) -> Tensor:
        """The student's :attr:`picture`, or the :attr:`latents` that its core guesses."""
        return self.latents if space == "latents" else self.picture

    @cached_property
    def decoded(self) -> Tensor:
        """The teacher's decoder's picture [B, 3, H, W] of :attr:`latents`, without gradient."""
        with torch.no_grad():
            return self.teacher.decode(self.latents.detach()).clamp(-1, 1)

    @cached_property
    def _core_output(self) -> CoreOutput:
        """What the core makes of the batch's noise: one pass for :attr:`picture` and :attr:`latents`."""
        with torch.enable_grad():  # whoever asks first, and be it a critic that wants no gradient
            return self.student.forward_features(*self._at_picture_time(self.batch.noise))

    @cached_property
    def picture_time(self) -> float:
        """Time of the step that :meth:`draw` trains: 1 for a one-step student, else one of its steps at random."""
        if self.num_steps == 1:
            return 1.0
        with self.purpose("picture_time"):  # shared by all terms: it must not depend on which asks first
            drawn = torch.randint(self.num_steps, (), generator=self.generator, device=self.generator.device)
        return 1 - int(drawn) / self.num_steps

    def draw(self, noise: Tensor) -> Tensor:
        """The student's x_0 [B, 3, H, W] of pure noise, as it sees it at :attr:`picture_time`.

        A student of several steps walks there by its own steps, without gradient, so that it is trained on what it
        will meet (DMD2, arXiv 2405.14867, section 4.5).
        """
        return self.student(*self._at_picture_time(noise))

    def _at_picture_time(self, noise: Tensor) -> tuple[Tensor, Tensor, Conditioning, Tensor]:
        """The student's arguments x_t, t, conditioning and r after its own steps from noise."""

        def given(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Conditioning, Tensor]:
            return x_t, t, self.batch.conditioning, (t - 1 / self.num_steps).clamp(min=0)

        steps = round((1 - self.picture_time) * self.num_steps)
        times = 1 - torch.arange(steps + 1, device=noise.device) / self.num_steps
        with torch.no_grad():
            x_t = flow.euler(
                lambda x, t: flow.velocity_from_x_0(x, self.student(*given(x, t)), t), noise, times
            )
        return given(x_t, times[-1].expand(len(noise)))

    def randn(self, *shape: int, axis: int = 0) -> Tensor:
        """Standard normal numbers of this step, on the batch's device; ``axis`` is the batch's."""
        whole = [n * self.share.count if i == axis else n for i, n in enumerate(shape)]
        drawn = torch.randn(whole, generator=self.generator, device=self.generator.device)
        return self._own(drawn, axis).to(self.batch.images)

    def rand(self, count: int) -> Tensor:
        """Even numbers [count] of this step in [0, 1), one a picture, on the generator's device."""
        drawn = torch.rand(count * self.share.count, generator=self.generator, device=self.generator.device)
        return self._own(drawn)

    def rand_columns(self, count: int, columns: int) -> Tensor | None:
        """Even numbers [count, columns] of this step, a row a picture; None for no columns, which draws none."""
        return torch.stack([self.rand(count) for _ in range(columns)], dim=1) if columns else None

    def randint(self, high: int, count: int) -> Tensor:
        """Whole numbers [count] of this step below ``high``, one a picture, on the generator's device."""
        size = (count * self.share.count,)
        return self._own(torch.randint(high, size, generator=self.generator, device=self.generator.device))

    def _own(self, drawn: Tensor, axis: int = 0) -> Tensor:
        """This share of numbers drawn for the whole batch."""
        place = self.share.of(drawn.shape[axis])
        return drawn.narrow(axis, place.start, place.stop - place.start)

    def random_subset(self, fraction: float) -> tuple[Tensor | slice, float]:
        """A random ``fraction`` of the step's batch, at least one picture.

        Returns:
            indices of those at hand (everything, a slice, at 1), perhaps none, and the factor with which their mean counts:
            1 where the batch is whole, else so that the shares' mean is that of all chosen.
        """
        if fraction >= 1:
            return slice(None), 1.0
        total = len(self.batch) * self.share.count
        count = max(1, round(fraction * total))
        order = torch.randperm(total, generator=self.generator, device=self.generator.device)
        chosen, place = order[:count].sort().values, self.share.of(total)
        chosen = chosen[(chosen >= place.start) & (chosen < place.stop)] - place.start
        return chosen.to(self.batch.images.device), self.share.count * len(chosen) / count

    def all_gather(self, x: Tensor, dim: int = 0) -> Tensor:
        """Values of all processes' parts of the batch, joined along its axis ``dim``; without gradient."""
        return distributed.gather(x, dim)


class Objective(nn.Module):
    """A sum of loss terms. A subclass names its knobs as keyword arguments of ``__init__``, typed and with defaults.

    ``forward`` returns scalar terms already multiplied by their own knobs; the caller adds them and multiplies by
    ``weight``. Frozen networks are no registered modules (:class:`Frozen`, :mod:`l2p.features`), so that no optimiser or checkpoint finds them.
    """

    name: str

    def __init__(self, weight: Weight = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        raise NotImplementedError

    @classmethod
    def check(cls, knobs: Mapping[str, Any], recipe: Recipe, stage: StageConfig) -> None:
        """Refuse what cannot work in this recipe, before anything is loaded.

        Args:
            knobs: all of them, defaults included.

        Raises:
            UserError: one line that names the keys and the way out.
        """

    @classmethod
    def networks_named(cls, knobs: Mapping[str, Any]) -> list[FeatureSpec]:
        """The frozen feature networks that an objective with these options, defaults included, sees. Raises: UserError."""
        return []

    @property
    def networks(self) -> list[FeatureNetwork]:
        """The frozen feature networks that it holds."""
        held = [
            value for value in vars(self).values() if isinstance(value, (FeatureNetwork, PerceptualDistance))
        ]
        return [n for value in held for n in getattr(value, "networks", [value])]

    def extra_repr(self) -> str:
        shown = {
            name: value for name, value in vars(self).items() if isinstance(value, (int, float, str, tuple))
        }
        return ", ".join(
            f"{k}={v}"
            for k, v in shown.items()
            if not k.startswith("_") and k not in ("training", "dump_patches")
        )


class CriticObjective(Objective):
    """An objective that owns networks, a critic or a fake score, which learn beside the student.

    Parameters that a subclass registers get an AdamW of their own, which takes ``critic_updates`` steps on
    ``critic_loss`` before each step of the student. They are checkpointed with their optimiser, and never averaged.
    A ``forward`` whose gradient passes through such a network calls it by :func:`call_frozen`.
    """

    critic_betas = (0.0, 0.99)  # a critic chases a moving target: momentum would point to where it was

    def __init__(
        self,
        weight: Weight = 1.0,
        critic_learning_rate: LearningRate = 1e-4,
        critic_updates: CriticUpdates = 1,
    ) -> None:
        super().__init__(weight)
        self.critic_learning_rate = critic_learning_rate
        self.critic_updates = critic_updates

    def critic_loss(self, ctx: StepContext) -> dict[str, Tensor]:
        """Scalar terms whose sum the objective's own networks minimise; the student gets no gradient from it."""
        raise NotImplementedError

    @classmethod
    def check(cls, knobs: Mapping[str, Any], recipe: Recipe, stage: StageConfig) -> None:
        if stage.accumulate > 1:
            raise UserError(
                f"objectives.{cls.name} trains a network of its own on whole batches: set accumulate to 1"
            )
        if recipe.dtype == "fp16":
            raise UserError(
                f"objectives.{cls.name} trains a network of its own, for which fp16 has no loss scale: "
                "set dtype to bf16 or fp32"
            )


def call_frozen(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``module(*args)`` whose gradient reaches the arguments and not the module's weights."""
    weights = {name: p.detach() for name, p in module.named_parameters()}
    return torch.func.functional_call(module, weights, args, kwargs)


class Frozen:
    """Holds a network without registering it with its owner; follows the device of its input."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def __call__(self, x: Tensor, **kwargs: Any) -> Any:
        parameter = next(self.module.parameters())
        if parameter.device != x.device:
            self.module.to(x.device)
        return self.module(x.to(parameter.dtype), **kwargs)
