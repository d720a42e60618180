"""Foreign schedules brought to flow time: shifted flow sigmas, and noise schedules that preserve the variance.

A variance-preserving model (SD1.5, SDXL, PixArt, DiT) knows ``x = alpha x_0 + sigma eps`` with ``alpha^2 + sigma^2 =
1``. Divided by ``alpha + sigma`` this is ``z_t = (1 - t) x_0 + t eps`` at ``t = sigma / (alpha + sigma)``, so that a
prediction of the noise is a velocity, ``u = (eps - z_t) / (1 - t)``, and one step of DDIM or of Euler in diffusers'
own variables is exactly one Euler step here. Such a schedule begins below t = 1 (0.936 for SDXL), as its noisiest
picture still holds some signal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2p import flow
from l2p.errors import UserError


def solver_of(scheduler) -> Callable[..., Tensor]:
    """The solver of this project that takes the same steps as a diffusers scheduler.

    Raises:
        UserError: a scheduler that draws noise on the way or whose order has no counterpart here.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name in ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "DDIMScheduler"):
        if config.get("stochastic_sampling"):
            raise UserError("the teacher's scheduler adds noise on the way: expected a deterministic one")
        if config.get("thresholding") or (name == "DDIMScheduler" and config.clip_sample):
            raise UserError(
                "the teacher's scheduler clips its predictions: set clip_sample and thresholding to false"
            )
        return flow.euler
    if name == "DPMSolverMultistepScheduler":
        if (config.algorithm_type, config.solver_order, config.solver_type) == ("dpmsolver++", 2, "midpoint"):
            return flow.dpm_solver
        raise UserError(
            f"the teacher's DPM solver is {config.algorithm_type} of order {config.solver_order} "
            f"({config.solver_type}), expected dpmsolver++ of order 2 (midpoint)"
        )
    raise UserError(
        f"the teacher's scheduler is a {name}: expected Euler (flow or discrete), DDIM or DPM-Solver++"
    )


def shift_of(scheduler, tokens: int, max_shift: float = 1.15) -> float:
    """The logarithm of the time shift for a picture of so many tokens, from the scheduler's own constants."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = scheduler.config
    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", max_shift),
    )


def even_flow_times(scheduler, num_inference_steps: int, mu: float) -> Tensor:
    """Times [n + 1] that start from the even ones ``1, ..., 1 / n`` before the scheduler shifts them (FLUX, Qwen)."""
    if scheduler.config.get("use_flow_sigmas"):
        scheduler.set_timesteps(num_inference_steps, mu=mu)
    elif (
        num_inference_steps == 1
    ):  # every shift keeps 1, and diffusers' stretch to shift_terminal divides by zero
        return torch.tensor([1.0, 0.0])
    else:
        even = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=even, mu=mu)
    return scheduler.sigmas.clone().float()


class NoiseSchedule:
    """The table of a variance-preserving schedule, read in flow time; everything in fp64."""

    def __init__(self, scheduler) -> None:
        config = scheduler.config
        if config.prediction_type != "epsilon":
            raise UserError(
                f"the teacher predicts {config.prediction_type!r}: expected 'epsilon' for this family"
            )
        self.scheduler = scheduler
        kept = scheduler.alphas_cumprod.double()
        self.ratios = ((1 - kept) / kept).sqrt()  # sigma / alpha of the training steps, growing

    @property
    def settings(self) -> dict[str, Any]:
        """The plain values that make the same table again."""
        config = self.scheduler.config
        if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
            raise UserError(
                "the teacher's noise schedule is a table of its own: expected a named beta_schedule"
            )
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
        return {key: config[key] for key in keys}

    @property
    def latest(self) -> float:
        """The noisiest time that the model was trained on."""
        return float(self.ratios[-1] / (1 + self.ratios[-1]))

    def times(self, num_inference_steps: int) -> Tensor:
        """Times [n + 1], float64, of the scheduler's own steps."""
        scheduler = self.scheduler
        scheduler.set_timesteps(num_inference_steps)
        if hasattr(scheduler, "sigmas"):
            ratios = scheduler.sigmas.double()
        else:  # DDIM keeps no sigmas: its last step ends at a time of its own
            kept = torch.as_tensor(scheduler.final_alpha_cumprod).double().reshape(1)
            final = ((1 - kept) / kept).sqrt()
            ratios = torch.cat([self.ratios[scheduler.timesteps.long().cpu()], final])
        return ratios / (1 + ratios)

    def start(self, eps: Tensor, t: Tensor) -> Tensor:
        """White noise as the scheduler starts from it at its first time ``t``: not at noise alone, but scaled to its kind."""
        ratio = t / (1 - t)
        init = float(self.scheduler.init_noise_sigma)
        if type(self.scheduler).__name__ == "EulerDiscreteScheduler":  # counts in x_0 + ratio eps
            return (eps * (init / (1 + ratio))).to(eps.dtype)
        return (eps * init * (1 + ratio.square()).sqrt() / (1 + ratio)).to(eps.dtype)

    def model_input(self, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network reads for ``z_t`` [B, ...] at ``t`` [B]: the same latent at unit variance, and its timestep [B].

        Times beyond :attr:`latest` are read as the latest.
        """
        scaled = z_t / flow.time_like((t.double().square() + (1 - t.double()).square()).sqrt(), z_t)
        return scaled.to(z_t.dtype), self.timestep(t)

    def timestep(self, t: Tensor) -> Tensor:
        """The network's own timestep [B] of t [B]; times beyond :attr:`latest` are read as the latest."""
        t = t.double()
        ratio = (t / (1 - t)).clamp(self.ratios[0].item(), self.ratios[-1].item())
        logs, wanted = self.ratios.to(t.device).log(), ratio.log()
        above = torch.searchsorted(logs, wanted).clamp(1, len(logs) - 1)
        low, high = logs[above - 1], logs[above]
        return ((above - 1) + (wanted - low) / (high - low)).float()

    def velocity(self, z_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """``u`` of the noise ``eps`` that the network sees in ``z_t`` at ``t`` [B]."""
        t = flow.time_like(t.double().clamp(max=self.latest), z_t)
        return ((eps - z_t) / (1 - t)).to(z_t.dtype)


def clean_from_noise(z_t: Tensor, minus_eps: Tensor, t: Tensor, latest: float) -> Tensor:
    """``z_0 = (z_t - t eps) / (1 - t)`` of tokens [B, ...] at t [B]; beyond ``latest`` along the velocity met there."""
    t = flow.time_like(t, z_t)
    left = 1 - t.clamp(max=latest)
    return (z_t * (left + t) + t * minus_eps) / left
