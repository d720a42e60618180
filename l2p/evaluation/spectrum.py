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
    power, radius = _power(images)
    number = (radius * (2 * bins)).long().flatten()
    inside = (number < bins) & (radius.flatten() > 0)
    counts = torch.bincount(number[inside], minlength=bins)
    sums = torch.zeros(len(images), bins, dtype=torch.float64, device=images.device)
    sums.index_add_(1, number[inside], power.flatten(1)[:, inside])
    return (torch.arange(bins, dtype=torch.float64, device=images.device) + 0.5) / (2 * bins), sums / counts


def high_frequency_energy(images: Tensor, cutoff: float = 0.25) -> Tensor:
    """Mean square of what lies above ``cutoff`` cycles a pixel, [B] float64.

    White noise of variance s^2 has ``s^2 (1 - pi cutoff^2)``. The ratio to the same figure of clean pictures is below 1
    for soft pictures and above 1 for noisy ones.
    """
    if not 0 < cutoff < 0.5:
        raise ValueError(f"{cutoff=} must lie between 0 and 0.5 cycles a pixel")
    power, radius = _power(images)
    return power.flatten(1)[:, (radius > cutoff).flatten()].sum(1) / radius.numel()


def _power(images: Tensor) -> tuple[Tensor, Tensor]:
    """Power [B, H, W] and the frequency of each place [H, W]."""
    if images.ndim != 4 or min(images.shape[2:]) < 8:
        raise ValueError(f"images must be [B, C, H, W] of at least 8 x 8, got {list(images.shape)}")
    height, width = images.shape[2:]
    place = {"dtype": torch.float64, "device": images.device}
    window = torch.outer(torch.hann_window(height, **place), torch.hann_window(width, **place))
    values = images.double() - images.double().mean((2, 3), keepdim=True)
    power = torch.fft.fft2(values * window).abs().square().mean(1) / window.square().sum()
    rows, columns = torch.fft.fftfreq(height, **place), torch.fft.fftfreq(width, **place)
    return power, (rows[:, None].square() + columns.square()).sqrt()
