"""``distribution``: the student's pictures follow the teacher's score minus their own (DMD2, arXiv 2405.14867).

Notable:
- Of a picture x, noised to x_t, two networks guess the clean one: the teacher (``real``) and a ``fake`` that learns on
  the student's pictures alone. ``fake - real`` is, up to a positive factor, the gradient of the Kullback-Leibler
  divergence between the two noised distributions (DMD, arXiv 2311.18828, section 3.2); where they agree it is zero.
- It is divided by the mean of ``|x - real|`` of each picture, so that all times push alike.
- In latents the gradient comes back to pixels through the teacher's encoder. That Jacobian makes texture, so a
  pixel's gradient is clipped. What the encoder drops it cannot see: keep a pixel term (`pairs`) beside it.
- ``space: latents`` matches what the core guesses instead: neither head nor encoder runs, and nothing needs clipping.
- ``score: FOLDER`` takes a many-step pixel student as the teacher: no encoder, and resolutions the teacher has not.
- ``decoupled``: guidance and matching have times of their own (Decoupled DMD, arXiv 2511.22677). Guidance, which the
  student must still obey at its step, is asked for below that step's time; matching everywhere.

Legend: B batch, x pixels or latents of the student's picture, w guidance scale.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from l2p import flow
from l2p.config import CriticUpdates, Float, GuidanceScale, LearningRate, Text, TimeShift, Weight
from l2p.errors import UserError
from l2p.objectives.base import CriticObjective, Frozen, StepContext
from l2p.objectives.latents import check_latents

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import Recipe, StageConfig
    from l2p.teachers import Conditioning, Teacher

T_MAX = 0.98  # at 1 the noisy picture tells nothing of the clean one


class DistributionObjective(CriticObjective):
    """Distribution matching against the teacher's score, or that of a frozen many-step student.

    Args:
        score: "teacher", or the folder of a many-step student.
        guidance_scale: w of the teacher, ``u + w (u - u_empty)``; 0 is off.
        decoupled: guidance at a time of its own, below that of the student's step.
        t_min: smallest time; below it there is nothing but noise-free detail.
        shift: of the times towards the noise, as in ``flow``.
        pixel_clip: largest gradient of a pixel, in units of its picture's mean square one; 0 is off.
        space: "pixels" matches the student's pictures, "latents" what its core guesses.
        critic_learning_rate, critic_updates: of the fake score; updates before each step of the student.
    """

    name = "distribution"
    critic_betas = (0.0, 0.999)

    def __init__(
        self,
        *,
        teacher: Teacher,
        lift: Lift,
        weight: Weight = 1.0,
        score: Text = "teacher",
        guidance_scale: GuidanceScale = 0.0,
        decoupled: bool = False,
        t_min: Annotated[Float, Field(gt=0, le=T_MAX)] = 0.02,
        shift: TimeShift = 1.0,
        pixel_clip: Weight = 3.0,
        space: Literal["pixels", "latents"] = "pixels",
        critic_learning_rate: LearningRate = 1e-4,
        critic_updates: CriticUpdates = 5,
    ) -> None:
        super().__init__(weight, critic_learning_rate, critic_updates)
        self.guidance_scale = guidance_scale
        self.decoupled = decoupled
        self.t_min = t_min
        self.shift = shift
        self.pixel_clip = pixel_clip
        self.space = space
        self._score = LatentScore(teacher) if score == "teacher" else PixelScore(score)
        self.fake = self._score.trainable_copy()

    @classmethod
    def check(cls, knobs: Mapping[str, Any], recipe: Recipe, stage: StageConfig) -> None:
        from l2p.students.io import read_spec
        from l2p.teachers import family_of

        super().check(knobs, recipe, stage)
        if knobs["space"] == "latents":
            check_latents("objectives.distribution.space=latents", recipe)
        if knobs["score"] != "teacher":
            if knobs["space"] == "latents":
                raise UserError(
                    "objectives.distribution.space=latents needs score: teacher, since a student's score is one of pixels"
                )
            spec = read_spec(knobs["score"])
            if spec.num_steps == 1:
                raise UserError(
                    f"objectives.distribution.score: {knobs['score']} was trained to paint in one step and gives no "
                    "score: name a student of more steps, such as one of the transfer stage, or teacher"
                )
            if knobs["guidance_scale"]:
                raise UserError(
                    "objectives.distribution.guidance_scale needs score: teacher, since a student knows no empty "
                    "prompt: set it to 0"
                )
        else:
            family = family_of(recipe.teacher.path)
            if family is not None and not family.gives_score:
                raise UserError(
                    f"objectives.distribution needs a score, and teacher.path={recipe.teacher.path} gives none: "
                    "name a many-step student in objectives.distribution.score, or use drift"
                )
        if knobs["decoupled"] and not knobs["guidance_scale"]:
            raise UserError(
                "objectives.distribution.decoupled parts guidance from matching: set guidance_scale above 0"
            )

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        answer = ctx.answer(self.space)
        leaf = answer.detach().requires_grad_()
        x = self._see(leaf)
        gradient = self.gradient(ctx, x.detach())
        if x is not leaf:
            (gradient,) = torch.autograd.grad(x, leaf, gradient.to(x.dtype))
        if self.space == "pixels":
            gradient = clip_pixels(gradient.float(), self.pixel_clip)
        # Half the squared distance to a stopped target: its gradient is the one above, shared out over x.
        target = answer.detach().float() - gradient
        return {"gap": (answer.float() - target).square().sum() / (2 * x.numel())}

    def _see(self, answer: Tensor) -> Tensor:
        """The student's answer in the space of the score."""
        return answer if self.space == "latents" else self._score.see(answer)

    @torch.no_grad()
    def gradient(self, ctx: StepContext, x: Tensor) -> Tensor:
        """The normalised direction [B, ...] at pictures x, in the space of the score: the student descends it."""
        conditioning, t = ctx.batch.conditioning, self._times(ctx, len(x), T_MAX)
        x_t = flow.add_noise(x, ctx.randn(*x.shape).to(x), t)
        fake = self._score.velocity(x_t, t, conditioning, network=self.fake)
        w = 0.0 if self.decoupled else self.guidance_scale
        real = self._score.velocity(x_t, t, conditioning, w)
        # x_0 = x_t - t u: the gap of the guesses is that of the velocities. In fp64: it is small beside them.
        gap = flow.time_like(t, x) * (real.double() - fake.double())
        scale = (x - flow.x_0_from_velocity(x_t, real, t)).abs().flatten(1).mean(1).clamp(min=1e-6)
        gap = gap / flow.time_like(scale, x)
        if self.decoupled:
            gap = gap - self._guidance(ctx, x)
        return gap.float()

    def _guidance(self, ctx: StepContext, x: Tensor) -> Tensor:
        """``w (x_0 - x_0 of the empty prompt)`` at a time of its own, in units of ``mean |x - x_0|``."""
        t = self._times(ctx, len(x), max(self.t_min, min(T_MAX, ctx.picture_time)))
        x_t = flow.add_noise(x, ctx.randn(*x.shape).to(x), t)
        plain = self._score.velocity(x_t, t, ctx.batch.conditioning)
        guided = self._score.velocity(x_t, t, ctx.batch.conditioning, self.guidance_scale)
        scale = (x - flow.x_0_from_velocity(x_t, guided, t)).abs().flatten(1).mean(1).clamp(min=1e-6)
        return flow.time_like(t, x) * (plain.double() - guided.double()) / flow.time_like(scale, x)

    def critic_loss(self, ctx: StepContext) -> dict[str, Tensor]:
        """Flow matching of the fake on the student's pictures; its optimum is their own score."""
        with torch.no_grad():
            x = self._see(ctx.answer(self.space).detach())
            t = self._times(ctx, len(x), T_MAX)
            eps = ctx.randn(*x.shape).to(x)
        u = self._score.velocity(flow.add_noise(x, eps, t), t, ctx.batch.conditioning, network=self.fake)
        return {"flow": (u.float() - flow.velocity(x, eps).float()).square().mean()}

    def _times(self, ctx: StepContext, count: int, highest: float) -> Tensor:
        """Times [count] in [t_min, highest], shifted."""
        drawn = flow.shift_time(ctx.rand(count), self.shift)
        return (self.t_min + (highest - self.t_min) * drawn).to(ctx.batch.images.device)


def clip_pixels(gradient: Tensor, limit: float) -> Tensor:
    """A gradient [B, C, H, W] in which no pixel is longer than ``limit`` times its picture's root mean square; 0: as is."""
    if not limit:
        return gradient
    length = gradient.norm(dim=1, keepdim=True)
    largest = limit * length.square().mean((1, 2, 3), keepdim=True).sqrt()
    return gradient * (largest / length.clamp(min=1e-12)).clamp(max=1)


class LatentScore:
    """Scores of latents: the teacher's, and that of a copy of its transformer."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def see(self, images: Tensor) -> Tensor:
        return self.teacher.encode(images)

    def trainable_copy(self) -> nn.Module:
        """Starts as the teacher: at first there is no gap but the guidance's."""
        return copy.deepcopy(self.teacher.transformer).float().requires_grad_(True)

    def velocity(
        self,
        x_t: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        guidance_scale: float = 0.0,
        network: nn.Module | None = None,
    ) -> Tensor:
        teacher = self.teacher if network is None else self.teacher.with_transformer(network)
        return teacher.velocity(x_t, t, conditioning, guidance_scale)


class PixelScore:
    """Scores of pixels: a frozen many-step student's, and that of its copy."""

    def __init__(self, folder: str) -> None:
        from l2p.students.io import load_student

        self.frozen = Frozen(load_student(folder).float())

    def see(self, images: Tensor) -> Tensor:
        return images

    def trainable_copy(self) -> nn.Module:
        return copy.deepcopy(self.frozen.module).requires_grad_(True)

    def velocity(
        self,
        x_t: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        guidance_scale: float = 0.0,
        network: nn.Module | None = None,
    ) -> Tensor:
        x_0 = (self.frozen if network is None else network)(x_t, t=t, conditioning=conditioning)
        return flow.velocity_from_x_0(x_t, x_0, t)
