"""Heads: core features and the noisy picture in, the clean picture out. Three kinds, and their growth; one interface.

``head(features [B, h, w, dim], c [B, time_dim], x_in [B, 3, H, W], t [B]) -> x_0 [B, 3, H, W]``, where
``x_in`` is the core's own input as a picture (offset removed, divided by k) and ``t`` the latent time the
core was given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from l2p.errors import UserError
from l2p.students.heads.grown import GrownHead
from l2p.students.heads.linear import LinearHead
from l2p.students.heads.patch import PatchHead
from l2p.students.heads.unet import UNetHead

# The kinds, and the knobs of a recipe's head section that each reads.
KNOBS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "patch": ("fine_patch", "width", "num_blocks", "head_dim", "tile", "halo"),
    "unet": ("width",),
}
DETAIL = KNOBS["patch"]  # and those of a grown head's own part

__all__ = ["DETAIL", "KNOBS", "GrownHead", "LinearHead", "PatchHead", "UNetHead", "build_head"]


def build_head(
    config: dict[str, Any],
    *,
    core_dim: int,
    time_dim: int,
    latent_dim: int,
    scale: float,
    patch_size: int,
    new_final: Callable[[int], nn.Module] | None = None,
    latest_noise: float | None = None,
) -> nn.Module:
    """Head of ``config["kind"]`` with the rest of ``config`` as its own knobs.

    Args:
        new_final: makes the core's last norm and a linear layer of so many values; Z-Image's if None.
        latest_noise: set where that layer writes minus the noise, not minus the velocity: the latest time it knows.

    Raises:
        UserError: an unknown kind or sizes that do not fit one another.
    """
    knobs = dict(config)
    kind = knobs.pop("kind")
    if kind == "linear":
        return LinearHead(core_dim, patch_size, latent_dim, scale, new_final, latest_noise)
    if kind == "patch":
        return PatchHead(
            core_dim,
            time_dim,
            patch_size,
            latent_dim,
            new_final=new_final,
            latest_noise=latest_noise,
            **knobs,
        )
    if kind == "unet":
        return UNetHead(core_dim, patch_size, **knobs)
    if kind == "grown":
        inner, factor = knobs.pop("inner"), knobs.pop("factor")
        small = build_head(
            inner,
            core_dim=core_dim,
            time_dim=time_dim,
            latent_dim=latent_dim,
            scale=scale / factor,
            patch_size=patch_size // factor,
            new_final=new_final,
            latest_noise=latest_noise,
        )
        return GrownHead(small, factor, core_dim, time_dim, patch_size, latent_dim, **knobs)
    raise UserError(f"no head {kind!r}: expected one of {', '.join(KNOBS)}")
