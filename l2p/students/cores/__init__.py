"""Cores: a teacher's transformer, reading pixel patches where it read latents. One class a diffusers transformer.

``core(tokens [B, h, w, 3 p^2], t [B], conditioning, span [B] | None) -> features [B, h, w, dim], time embedding [B, time_dim]``, with
t = 1 for noise in every family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from l2p.errors import UserError
from l2p.students.cores.flux import ChromaCore, Flux2Core, FluxCore
from l2p.students.cores.noise import DiTCore, PixArtCore
from l2p.students.cores.qwen_image import QwenImageCore
from l2p.students.cores.sana import SanaCore
from l2p.students.cores.sd3 import SD3Core
from l2p.students.cores.z_image import ZImageCore

CORES = {
    core.transformer_class: core
    for core in (
        ZImageCore,
        FluxCore,
        ChromaCore,
        Flux2Core,
        QwenImageCore,
        SD3Core,
        SanaCore,
        PixArtCore,
        DiTCore,
    )
}

__all__ = ["CORES", "build_core", "core_class"]


def core_class(transformer_class: str) -> type:
    """Raises: UserError for a network that no student can keep."""
    if transformer_class not in CORES:
        raise UserError(
            f"no student has a core of the kind {transformer_class}, expected one of {', '.join(CORES)}: give it one of "
            "its own, such as student.core=base"
        )
    return CORES[transformer_class]


def build_core(config: Mapping[str, Any], patch_size: int, interval: bool = False) -> nn.Module:
    """The core of a student's spec; a config without a class is Z-Image's, the first there was.

    Args:
        interval: it is told where its step ends; some cores alone take that.
    """
    kept = dict(config)
    told = {"interval": True} if interval else {}
    return core_class(kept.pop("class", ZImageCore.transformer_class))(kept, patch_size, **told)
