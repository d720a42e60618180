"""The lift as a head: a linear read-out of the core, nothing learned at step zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from l2p.flow import time_like
from l2p.patches import patchify, unpatchify
from l2p.runtime import no_autocast
from l2p.teachers.schedules import clean_from_noise


def final_layer(core_dim: int, out_dim: int, new_final: Callable[[int], nn.Module] | None) -> nn.Module:
    """The core's last norm and a linear layer of ``out_dim`` values, by the core's own ``new_final``; else Z-Image's."""
    if new_final is not None:
        return new_final(out_dim)
    from diffusers.models.transformers.transformer_z_image import FinalLayer

    return FinalLayer(core_dim, out_dim)


def clean(z_t: Tensor, out: Tensor, t: Tensor, latest_noise: float | None) -> Tensor:
    """``z_0`` of tokens [B, ...] at t [B], where ``out`` is minus the velocity; minus the noise if ``latest_noise`` is set."""
    if latest_noise is None:
        return z_t + time_like(t, z_t).to(z_t.dtype) * out
    return clean_from_noise(z_t, out, t, latest_noise).to(z_t.dtype)


class LinearHead(nn.Module):
    """``x_0 = s A (A^T x_in + t' out) + b``; for ``out``, ``s A`` is folded into the teacher's final layer.

    Folded, the layer has all ``3 p^2`` outputs, so that training may leave the span of A.

    Args:
        core_dim: width of the core's features.
        latent_dim: d, columns of A.
        scale: s of the lift.
        new_final: see :func:`final_layer`.
        latest_noise: see :func:`clean`.
    """

    def __init__(
        self,
        core_dim: int,
        patch_size: int,
        latent_dim: int,
        scale: float,
        new_final: Callable[[int], nn.Module] | None = None,
        latest_noise: float | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.scale = scale
        self.latest_noise = latest_noise
        self.final = final_layer(core_dim, 3 * patch_size**2, new_final)
        self.register_buffer("basis", torch.zeros(3 * patch_size**2, latent_dim, dtype=torch.float32))
        self.register_buffer("offset", torch.zeros(3 * patch_size**2, dtype=torch.float32))

    def forward(self, features: Tensor, c: Tensor, x_in: Tensor, t: Tensor) -> Tensor:
        out = self.final(features.flatten(1, 2), c=c).unflatten(1, features.shape[1:3])
        with no_autocast(x_in):  # this path carries the noise itself: keep its digits
            tokens = patchify(x_in.float(), self.patch_size)
            basis = self.basis.float()
            kept = self.scale * (tokens @ basis) @ basis.T
            x_0 = clean(kept, out.float(), t, self.latest_noise) + self.offset.float()
        return unpatchify(x_0, self.patch_size)
