"""Time, noise and velocity: the conventions of the whole project, in one place.

t in [0, 1]; t = 0 is the clean picture, t = 1 is pure noise; x_t = (1 - t) x_0 + t eps; velocity u = eps - x_0.
B batch, C channels, H W rows and columns. Where a `t` is taken, it is a number or a tensor [B].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

STRIDE = 1 << 17  # uniform numbers between two remembered states of a generator, and drawn at a time: 1 MiB


class Noise:
    """White noise [B, C, H, W] that is drawn where it is looked at; row i of the batch is of generators[i] alone.

    Uniform numbers through Box-Muller, in fp64 and then rounded: `torch.randn` in fp32 takes other instructions on
    other CPUs, which changes its last bits. A first pass remembers the generator's state at every `STRIDE` numbers, so
    that any rows can be drawn again and a large picture's noise need never be held.

    Args:
        generators: on the CPU, left where drawing everything leaves them; several rows may share one.
    """

    def __init__(self, generators: Sequence[torch.Generator], channels: int, height: int, width: int) -> None:
        self.shape = (len(generators), channels, height, width)
        self._half = -(-channels * height * width // 2)
        self._streams = [_Uniform(generator, 2 * self._half) for generator in generators]

    @classmethod
    def of_seeds(cls, seeds: Sequence[int], channels: int, height: int, width: int) -> Noise:
        return cls([torch.Generator().manual_seed(int(seed)) for seed in seeds], channels, height, width)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of every channel: float32 [B, C, stop - start, W]."""
        batch, channels, height, width = self.shape
        drawn = torch.empty(batch, channels, stop - start, width)
        for picture, stream in zip(drawn, self._streams, strict=True):
            if (start, stop) == (0, height):
                self._fill_whole(picture.view(-1), stream)
                continue
            for channel, values in enumerate(picture):
                first = (channel * height + start) * width
                self._fill(values.view(-1), first, stream)
        return drawn

    def _fill_whole(self, values: Tensor, uniform: _Uniform) -> None:
        """All numbers of a picture; radius and angle serve its cosines and its sines at once."""
        cosines, sines = values[: self._half], values[self._half :]
        for at in range(0, self._half, STRIDE):
            count = min(STRIDE, self._half - at)
            radius = uniform(at, count).neg_().log1p_().mul_(-2).sqrt_()
            angle = uniform(self._half + at, count).mul_(2 * math.pi)
            cosines[at : at + count] = angle.cos().mul_(radius)
            last = min(count, len(sines) - at)  # one fewer, of an odd number
            sines[at : at + last] = angle.sin_().mul_(radius)[:last]

    def _fill(self, values: Tensor, first: int, uniform: _Uniform) -> None:
        """The numbers from the first-th on: cosines in the first half of a picture, the same angles' sines after it."""
        last = first + len(values)
        for part, low, high in ((torch.cos, 0, self._half), (torch.sin, self._half, 2 * self._half)):
            begin, end = max(first, low), min(last, high)
            for at in range(begin, end, STRIDE):
                count, pair = min(STRIDE, end - at), at - low
                radius = uniform(pair, count).neg_().log1p_().mul_(-2).sqrt_()
                angle = uniform(self._half + pair, count).mul_(2 * math.pi)
                values[at - first : at - first + count] = part(angle, out=angle).mul_(radius)


class _Uniform:
    """`total` uniform fp64 numbers in [0, 1) of a generator, from any place on."""

    def __init__(self, generator: torch.Generator, total: int) -> None:
        self._generator = torch.Generator()
        self._states = []
        self._scratch = torch.empty(min(STRIDE, total), dtype=torch.float64)
        for first in range(0, total, STRIDE):
            self._states.append(generator.get_state())
            self._draw(min(STRIDE, total - first), generator)

    def __call__(self, first: int, count: int) -> Tensor:
        self._generator.set_state(self._states[first // STRIDE])
        self._draw(first % STRIDE, self._generator)
        return torch.rand(count, dtype=torch.float64, generator=self._generator)

    def _draw(self, count: int, generator: torch.Generator) -> None:
        torch.rand(count, dtype=torch.float64, generator=generator, out=self._scratch[:count])


def noise(seeds: Sequence[int], channels: int, height: int, width: int) -> Tensor:
    """White noise float32 [B, C, H, W] on the CPU; row i depends on seeds[i] (>= 0) alone, on every machine alike."""
    return Noise.of_seeds(seeds, channels, height, width).rows(0, height)


def noise_from(generators: Sequence[torch.Generator], channels: int, height: int, width: int) -> Tensor:
    """White noise float32 [B, C, H, W], row i drawn from the CPU's generators[i], which may be one and the same."""
    return Noise(generators, channels, height, width).rows(0, height)


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


def adams_bashforth(
    velocity_fn: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    progress: Callable[[int], object] | None = None,
    *,
    euler_steps: int | None = None,
) -> Tensor:
    """As `euler`, with the two-step Adams-Bashforth method (variable steps; the first one is Euler's).

    A step of Euler's leaves out h^2 / 2 du/dt, which the method estimates from the last two velocities.

    Args:
        euler_steps: end where Euler's method with so many steps ends, rather than at the exact solution: such a run
            leaves out n / euler_steps of what one of n steps does, and that share is left out here as well.

    Raises:
        ValueError: fewer Euler steps than `times` has.
    """
    times = times.to(x.device)
    steps, previous = len(times) - 1, None
    if euler_steps is not None and euler_steps < steps:
        raise ValueError(f"expected at least {steps} Euler steps, got {euler_steps}")
    share = 1.0 if euler_steps is None else 1 - steps / euler_steps
    for step in range(steps):
        u, h = velocity_fn(x, times[step].expand(len(x))), times[step + 1] - times[step]
        correction = (
            0 if previous is None else share * h / (2 * (times[step] - times[step - 1])) * (u - previous)
        )
        x = (x + h * (u + correction)).to(x.dtype)
        previous = u
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
