"""How a picture's energy is spread over frequencies: softness and noise.

Frequencies are in cycles a pixel, 0.5 being the finest. A Hann window keeps the jump between opposite edges out of the
spectrum; powers are divided by the window's, so white noise of variance s^2 has power s^2 at every frequency.

Legend: B pictures, H W pixels, n bins.
"""

from __future__ import annotations

import torch
from torch import Tensor


def radial_power_spectrum(images: Tensor, bins: int = 32) -> tuple[Tensor, Tensor]:
    """Power over frequency, averaged over all directions and channels.

    Args:
        images: [B, C, H, W] in [-1, 1], at least 8 x 8.
        bins: rings of equal width between 0 and 0.5.

    Returns:
        the middle frequency of each ring [n], and the mean power in it [B, n], float64; a ring too narrow to hold a
        frequency of a small picture has NaN.
    """
    return rings(*power_of(images), bins)


def high_frequency_energy(images: Tensor, cutoff: float = 0.25) -> Tensor:
    """Mean square of what lies above ``cutoff`` cycles a pixel, [B] float64.

    White noise of variance s^2 has ``s^2 (1 - pi cutoff^2)``. The ratio to the same figure of clean pictures is below 1
    for soft pictures and above 1 for noisy ones.
    """
    return energy_above(*power_of(images), cutoff)


def rings(power: Tensor, radius: Tensor, number: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """:func:`radial_power_spectrum` of :func:`power_of`, which others may need as well."""
    ring = (radius * (2 * bins)).long().flatten()
    inside = (ring < bins) & (radius.flatten() > 0)
    counts = torch.bincount(ring[inside], weights=number.flatten()[inside], minlength=bins)
    sums = torch.zeros(len(power), bins, dtype=torch.float64, device=power.device)
    sums.index_add_(1, ring[inside], (power * number).flatten(1)[:, inside])
    return (torch.arange(bins, dtype=torch.float64, device=power.device) + 0.5) / (2 * bins), sums / counts


def energy_above(power: Tensor, radius: Tensor, number: Tensor, cutoff: float = 0.25) -> Tensor:
    """:func:`high_frequency_energy` of :func:`power_of`."""
    if not 0 < cutoff < 0.5:
        raise ValueError(f"{cutoff=} must lie between 0 and 0.5 cycles a pixel")
    return ((power * number) * (radius > cutoff)).sum((1, 2)) / number.sum()


def power_of(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Power [B, H, W // 2 + 1] (the other half of a real picture's is its mirror), the frequency of each place
    [H, W // 2 + 1], and how many places of the whole it stands for, of the same shape: 1 or 2."""
    if images.ndim != 4 or min(images.shape[2:]) < 8:
        raise ValueError(f"images must be [B, C, H, W] of at least 8 x 8, got {list(images.shape)}")
    height, width = images.shape[2:]
    place = {"dtype": torch.float64, "device": images.device}
    window = torch.outer(torch.hann_window(height, **place), torch.hann_window(width, **place))
    values = images.double() - images.double().mean((2, 3), keepdim=True)
    half = torch.fft.rfft2(values * window)
    power = (half.real.square() + half.imag.square()).mean(1) / window.square().sum()
    rows, columns = torch.fft.fftfreq(height, **place), torch.fft.rfftfreq(width, **place)
    number = torch.full_like(columns, 2.0)
    number[0] = 1.0
    if width % 2 == 0:
        number[-1] = 1.0  # the finest frequency is its own mirror
    return power, (rows[:, None].square() + columns.square()).sqrt(), number.expand(height, -1)
