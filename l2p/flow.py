"""Time, noise and velocity: the conventions of the whole project, in one place.

t in [0, 1]; t = 0 is the clean picture, t = 1 is pure noise; x_t = (1 - t) x_0 + t eps; velocity u = eps - x_0.
B batch, C channels, H W rows and columns. Where a `t` is taken, it is a number or a tensor [B].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def noise(seeds: Sequence[int], channels: int, height: int, width: int) -> Tensor:
    """White noise float32 [B, C, H, W] on the CPU; row i depends on seeds[i] (>= 0) alone, on every machine alike."""
    return noise_from([torch.Generator().manual_seed(int(seed)) for seed in seeds], channels, height, width)


def noise_from(generators: Sequence[torch.Generator], channels: int, height: int, width: int) -> Tensor:
    """White noise float32 [B, C, H, W], row i drawn from the CPU's generators[i], which may be one and the same.

    Uniform numbers through Box-Muller, in fp64 and then rounded: `torch.randn` in fp32 takes other instructions on
    other CPUs, which changes its last bits.
    """
    size = channels * height * width
    drawn = torch.empty(len(generators), size)
    for row, generator in zip(drawn, generators, strict=True):
        half = -(-size // 2)
        radius = torch.rand(half, dtype=torch.float64, generator=generator).neg_().log1p_().mul_(-2).sqrt_()
        angle = torch.rand(half, dtype=torch.float64, generator=generator).mul_(2 * math.pi)
        row[:half] = angle.cos().mul_(radius)
        row[half:] = angle.sin_().mul_(radius)[: size - half]
    return drawn.reshape(len(generators), channels, height, width)


def time_like(t: Tensor | float, x: Tensor) -> Tensor:
    """`t` shaped to broadcast over x [B, ...]: [B] -> [B, 1, ...], on the device of x; fp64 stays, all else is fp32."""
    double = x.dtype == torch.float64 or (isinstance(t, Tensor) and t.dtype == torch.float64)
    t = torch.as_tensor(t, dtype=torch.float64 if double else torch.float32, device=x.device)
    return t.reshape(-1, *[1] * (x.ndim - 1))


def shift_time(t: Tensor | float, shift: float) -> Tensor | float:
    """t' = s t / (1 + (s - 1) t): more time in the noise for s > 1; keeps 0 and 1; shift 1 / s undoes shift s."""
    return shift * t / (shift * t + (1 - t))  # this form keeps t = 1 to the last bit


def add_noise(x_0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
    """x_t = (1 - t) x_0 + t eps."""
    t = time_like(t, x_0)
    return ((1 - t) * x_0 + t * eps).to(x_0.dtype)


def velocity(x_0: Tensor, eps: Tensor) -> Tensor:
    """u = eps - x_0, the direction of growing noise."""
    return eps - x_0


def x_0_from_velocity(x_t: Tensor, u: Tensor, t: Tensor | float) -> Tensor:
    """x_0 = x_t - t u."""
    return (x_t - time_like(t, x_t) * u).to(x_t.dtype)


def velocity_from_x_0(x_t: Tensor, x_0: Tensor, t: Tensor | float, t_min: float = 0.05) -> Tensor:
    """u = (x_t - x_0) / max(t, t_min); t_min only keeps the division finite near the clean end."""
    return ((x_t - x_0) / time_like(t, x_t).clamp(min=t_min)).to(x_t.dtype)


def euler(
    velocity_fn: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Follows dx/dt = velocity_fn(x, t [B]) along the descending `times` [n + 1], and returns x at the last of them.

    `progress` is called with the number of finished steps, 1 to n.
    """
    times = times.to(x.device)
    for step in range(len(times) - 1):
        u = velocity_fn(x, times[step].expand(len(x)))
        x = (x + (times[step + 1] - times[step]) * u).to(x.dtype)
        if progress is not None:
            progress(step + 1)
    return x


def dpm_solver(
    velocity_fn: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """As `euler`, with DPM-Solver++ of order 2 (multistep, midpoint; arXiv 2211.01095, algorithm 2).

    The picture predicted at a step is led on from the one before; the first and the last step are Euler's. With
    lambda = log((1 - t) / t) the method is the same for every scaling of alpha and sigma.
    """
    times = times.to(x.device)
    steps, previous = len(times) - 1, None
    log_snr = ((1 - times.double()) / times.double()).log()
    for step in range(steps):
        t, t_next = times[step].double(), times[step + 1].double()
        x_0 = x_0_from_velocity(x, velocity_fn(x, times[step].expand(len(x))), times[step])
        drawn = x_0
        if previous is not None and t_next > 0:
            ratio = (log_snr[step + 1] - log_snr[step]) / (log_snr[step] - log_snr[step - 1])
            drawn = x_0 + ratio / 2 * (x_0 - previous)
        x = (t_next / t * x + (1 - t_next / t) * drawn).to(x.dtype)
        previous = x_0
        if progress is not None:
            progress(step + 1)
    return x
