"""A pixel student is a core and a head, nothing else.

The way of a picture: ``x_t`` loses the lift's offset and is divided by k(t), so that the core, whose first
layer holds the folded basis, meets the very latents its teacher knew, at their time ``t' = t / k``; the head
turns the core's features and the same normalised picture into ``x_0``.

Legend: B batch, H W pixels, p patch side, D = 3 p^2, h w token grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from l2p import flow
from l2p.config import RENAMED_KEYS
from l2p.errors import UserError
from l2p.lift import asymmetric_velocity
from l2p.patches import patchify, unpatchify
from l2p.runtime import no_autocast
from l2p.students.cores import build_core
from l2p.students.heads import build_head

if TYPE_CHECKING:
    from l2p.teachers.protocol import Conditioning


@dataclass
class StudentSpec:
    """All that is needed to build a student without its weights; plain values, so it travels as JSON.

    Attributes:
        patch_size: p, pixels a side of a core token.
        latent_dim: d, values of the teacher's token.
        lift_scale: s of the lift.
        core: config of the transformer, see :meth:`l2p.students.cores.base.Core.config_of`.
        head: ``kind`` and the knobs of that head.
        num_steps: steps the student was trained to draw in.
        height, width: pixels of the pictures it was trained on; None if not recorded.
        max_timestep: latent times above this one are told to core and head as this one. At t = 1 a flow model has
            learnt to ignore the noise (it predicts the mean picture of the caption), a little below it reads the
            layout off it: a one-step student that is told 0.94 of pure noise starts nearer to its teacher's picture.
        project_noise: of pure noise (t = 1) core and head see the part in the lift's span alone. The rest, eleven twelfths
            of the numbers at d = 64 and D = 768, decides nothing of the teacher's picture and has to be unlearnt
            otherwise; without it a student has nothing to invent from.
        interval: the student is also told where its step ends, which mean flow needs: x_0 is then read off the average
            velocity of that step. A step from t to t itself is the flow's own.
        guidance_scale: of classifier-free guidance at every step, ``x_0(empty) + w (x_0 - x_0(empty))``; 1 is none. A student
            of few steps has its teacher's guidance in its weights; a many-step one may need it when it draws.
        shift: of the steps' times towards noise, see :func:`l2p.flow.shift_time`; 1 is even times.
        noise_generator: what makes the noise of a seed, see :mod:`l2p.noise`: the one it was trained with.
    """

    patch_size: int
    latent_dim: int
    lift_scale: float
    core: dict[str, Any]
    head: dict[str, Any]
    num_steps: int = 1
    height: int | None = None
    width: int | None = None
    teacher: dict[str, Any] = field(default_factory=dict)
    max_timestep: float = 1.0
    project_noise: bool = False
    interval: bool = False
    guidance_scale: float = 1.0
    shift: float = 1.0
    noise_generator: str = "philox"


def current_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A spec's values under today's names; a value under its present name wins."""
    old = {RENAMED_KEYS[key]: value for key, value in config.items() if key in RENAMED_KEYS}
    return {**old, **{key: value for key, value in config.items() if key not in RENAMED_KEYS}}


class CoreOutput(NamedTuple):
    """What the core makes of a noisy picture.

    Attributes:
        inputs: of the head: features [B, h, w, dim], time embedding [B, time_dim], the normalised picture and time.
        size: rows and columns of the picture, before it was continued to whole patches.
    """

    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    size: tuple[int, int]


class PixelStudent(nn.Module):
    """Noisy pixels, time and captions in; clean pixels out."""

    quantization: dict[str, Any] | None = (
        None  # how its weights were rounded and what that cost, see quantize.py
    )

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.core = build_core(spec.core, spec.patch_size, spec.interval)
        self.head = self.new_head()
        exact = {"dtype": torch.float32}  # whatever the weights are made in
        self.register_buffer("basis", torch.zeros(3 * spec.patch_size**2, spec.latent_dim, **exact))
        self.register_buffer("offset", torch.zeros(3 * spec.patch_size**2, **exact))

    def new_head(self) -> nn.Module:
        """A freshly initialised head of the spec's kind."""
        return build_head(
            self.spec.head,
            core_dim=self.core.dim,
            time_dim=self.core.time_dim,
            latent_dim=self.spec.latent_dim,
            scale=self.spec.lift_scale,
            patch_size=self.spec.patch_size,
            new_final=self.core.new_final,
            latest_noise=self.core.latest_noise,
        )

    @property
    def device(self) -> torch.device:
        return self.basis.device

    def check_lifted(self, purpose: str) -> None:
        """Raises: UserError for a student without a lift, as published ones are: its noise is that of no latents."""
        if not self.basis.any():
            raise UserError(f"this student was not lifted from a teacher, so it cannot be {purpose}")

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute blocks in the backward pass: a third more time, far less memory, the same gradients."""
        self.core.set_gradient_checkpointing(enabled)
        if hasattr(self.head, "gradient_checkpointing"):
            self.head.gradient_checkpointing = enabled

    def compile_blocks(self) -> None:
        """`torch.compile` the blocks that repeat, of core and head: one compilation serves all blocks of a kind.

        A CPU needs a C++ compiler. Bands of other heights are compiled once more, then for any height.
        """
        for block in [*self.core.blocks, *getattr(self.head, "blocks", ())]:
            block.compile()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        r: Tensor | None = None,
        draft: Tensor | None = None,
    ) -> Tensor:
        """Predicted clean pictures x_0: :meth:`forward_features`, then :meth:`forward_head`.

        Args:
            x_t: [B, 3, H, W], about [-1, 1] plus noise. Sides that are no multiple of p are continued with
                the picture's other edge (which keeps white noise white) and cut off again.
            t: [B], 1 is noise.
            conditioning: B captions.
            r: [B], where the step from t ends, 0 <= r <= t; t itself if None. Without ``interval`` it is not looked at.
            draft: for a grown student, see :class:`l2p.students.heads.GrownHead`; sides are multiples of p then.
        """
        return self.forward_head(self.forward_features(x_t, t, conditioning, r), draft).to(x_t.dtype)

    def forward_features(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, r: Tensor | None = None
    ) -> CoreOutput:
        """The core's part of :meth:`forward`: cheap beside the head's, which it ends before."""
        p = self.spec.patch_size
        t = t.to(x_t.device, torch.float32)
        k = self._k(t)
        tokens = patchify(_wrap(x_t.float(), p), p)
        tokens = (tokens - flow.time_like(1 - t, tokens) * self.offset.float()) / flow.time_like(k, tokens)
        if self.spec.project_noise:
            inside = self.from_span(self.to_span(tokens))
            tokens = torch.where(flow.time_like(t, tokens) >= 1, inside, tokens)
        t_latent = self.latent_time(t)
        features, c = self.core(tokens, t_latent, conditioning, self.step_size(t, r))
        return CoreOutput((features, c, unpatchify(tokens, p), t_latent), tuple(x_t.shape[2:]))

    def forward_head(self, core_output: CoreOutput, draft: Tensor | None = None) -> Tensor:
        """The head's part: x_0 [B, 3, H, W]."""
        given = {} if draft is None else {"draft": draft}
        x_0 = self.head(*core_output.inputs, **given)
        return x_0[:, :, : core_output.size[0], : core_output.size[1]]

    def latents(self, core_output: CoreOutput) -> Tensor:
        """What the core takes the teacher's latents to be, packed z_0 [B, h, w, d], in the teacher's normalisation.

        Raises:
            UserError: the head keeps no layer that reads them.
        """
        if not hasattr(self.head, "latents"):
            raise UserError(
                f"a {self.spec.head['kind']} head reads no latents off the core: use head.kind patch, or another objective"
            )
        return self.head.latents(*core_output.inputs)

    def to_span(self, tokens: Tensor) -> Tensor:
        """``A^T x`` [B, h, w, d] of tokens [B, h, w, D], in fp32 even under autocast: noise keeps its digits."""
        with no_autocast(tokens):
            return tokens.float() @ self.basis.float()

    def from_span(self, latents: Tensor) -> Tensor:
        """``A z`` [B, h, w, D] of latents [B, h, w, d], likewise."""
        with no_autocast(latents):
            return latents.float() @ self.basis.float().T

    def latent_time(self, t: Tensor) -> Tensor:
        """The time that core and head are told at time t [B]: the lift's ``t / k``, at most ``max_timestep``."""
        return (t / self._k(t)).clamp(max=self.spec.max_timestep)

    def step_size(self, t: Tensor, r: Tensor | None) -> Tensor | None:
        """Length [B] in latent time of a step from t to r, as the core is told it; None without ``interval``."""
        if not self.spec.interval:
            return None
        r = t if r is None else r.to(t)
        return t / self._k(t) - r / self._k(r)

    def _k(self, t: Tensor) -> Tensor:
        return (1 - t) * self.spec.lift_scale + t

    def velocity(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, t_min: float = 0.05) -> Tensor:
        """``u = eps - x_0`` [B, 3, H, W] at times t [B]; ``t_min`` guards the division."""
        return flow.velocity_from_x_0(x_t, self(x_t, t, conditioning), t, t_min)

    def asymmetric_velocity(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, t_min: float = 0.05
    ) -> Tensor:
        """``u_A = P eps - x_0`` [B, 3, H, W], noise only inside the lift's span; sides are multiples of p."""
        p = self.spec.patch_size
        x_0 = patchify(self(x_t, t, conditioning), p)
        return unpatchify(asymmetric_velocity(patchify(x_t, p), x_0, t, self.basis, t_min), p)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        num_steps: int | None = None,
        progress: Callable[[int], object] | None = None,
        on_step: Callable[[int, float, Tensor], Tensor] | None = None,
        empty: Conditioning | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Draw pictures [B, 3, H, W] from noise of that shape; not clamped.

        Args:
            num_steps: Euler steps at even times, shifted as the spec says; the spec's if None. One step is
                ``self(noise, 1)``.
            progress: called with the number of steps done.
            on_step: called with the step, its time and the picture after it; what it returns is gone on with.
            empty: one row, what guidance steers away from; needed where the scale is above 1.
            guidance_scale: the spec's if None.
        """
        num_steps = self.spec.num_steps if num_steps is None else num_steps
        scale = self.spec.guidance_scale if guidance_scale is None else guidance_scale
        if scale > 1 and empty is None:
            raise ValueError(f"a guidance scale of {scale} needs the empty prompt")
        x, shift = noise, self.spec.shift
        for step in range(num_steps):
            even, even_next = 1 - step / num_steps, 1 - (step + 1) / num_steps
            t = flow.shift_time(even, shift)
            start, end = (
                torch.full((len(x),), time, device=x.device)
                for time in (t, flow.shift_time(even_next, shift))
            )
            x_0 = self(x, start, conditioning, end)
            if scale > 1:
                x_0_empty = self(x, start, empty.expand(len(x)), end)
                x_0 = x_0_empty + scale * (x_0 - x_0_empty)
            # The Euler step along (x - x_0) / t, written without the division by t.
            kept = (num_steps - step - 1) / (num_steps - step)
            kept *= (1 + (shift - 1) * even) / (1 + (shift - 1) * even_next)
            x = kept * x + (1 - kept) * x_0
            if on_step is not None:
                x = on_step(step, t, x)
            if progress is not None:
                progress(step + 1)
        return x


def _wrap(x: Tensor, multiple: int) -> Tensor:
    """Continue [B, C, H, W] periodically at the bottom and right, up to multiples of ``multiple``."""
    for axis in (2, 3):
        size = x.shape[axis]
        if size % multiple:
            x = x.index_select(axis, torch.arange(size + -size % multiple, device=x.device) % size)
    return x
