"""Students by name: sizes to benchmark, to count with, and to train from, without any weights; and cores of our own.

The core's grid stays at 64 x 64 tokens or less whatever the picture, so the core's price does not grow with it: the
patch does, 16 px at 1024, 32 at 2048, 64 at 4096, 128 at 8192 (pMF, arXiv 2601.22158, measured a fixed grid to cost
little quality). Fine tokens keep 8 px up to 4096 and grow beyond, so that the head's price goes with the pixels first and
then with their eighth parts.

Why `base` is what it is: a 4096 px picture within 15 s and 3 GB on 2 CPU cores in bf16. A core of 130 M over 4,096
tokens takes 1.7 TFLOP, attention included. A head of width 128 and two blocks has two numbers a pixel to write three
colours from; at width 192 it takes 1.5 times the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from l2p.errors import UserError
from l2p.students.student import PixelStudent, StudentSpec

GRID = 64  # core tokens a side of a square picture of 1024 px and more
SMALLEST_PATCH, LATENT_DIM = 16, 64


@dataclass(frozen=True)
class Preset:
    """Sizes of a student.

    Attributes:
        core: of the transformer, as in its config; what is not named is Z-Image's own.
        head_width, num_blocks, head_dim: of the patch head.
        text: of the text encoder that goes with it in benchmarks (:class:`l2p.teachers.build.TextSizes`).
        counting_only: too large to be made for real without thinking.
    """

    name: str
    core: dict[str, Any]
    head_width: int
    num_blocks: int
    head_dim: int
    text: dict[str, int]
    counting_only: bool = False


def _core(dim: int, layers: int, refiners: int, heads: int, caption: int, axes: list[int]) -> dict[str, Any]:
    return {
        "dim": dim,
        "n_layers": layers,
        "n_refiner_layers": refiners,
        "n_heads": heads,
        "n_kv_heads": heads,
        "cap_feat_dim": caption,
        "axes_dims": axes,
        "axes_lens": [1024, 512, 512],
    }


def _text(hidden: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 3 * hidden,
    }


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", _core(192, 6, 1, 3, 128, [16, 24, 24]), 192, 2, 32, _text(128, 3, 4)),
        Preset("base", _core(768, 12, 2, 12, 512, [16, 24, 24]), 128, 2, 64, _text(512, 6, 8)),
        Preset("large", _core(1536, 16, 2, 24, 1024, [16, 24, 24]), 192, 3, 64, _text(1024, 12, 16)),
        Preset("z-image", _core(3840, 30, 2, 30, 2560, [32, 48, 48]), 256, 3, 64, _text(2560, 36, 32), True),
    )
}


def find_preset(name: str) -> Preset:
    """Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def own_core(name: str, caption_width: int) -> dict[str, Any]:
    """Config of a preset's transformer for captions of this width: a core for teachers whose network is no core.

    Raises:
        UserError: an unknown name.
    """
    return {**find_preset(name).core, "cap_feat_dim": caption_width}


def patch_size_for(height: int, width: int) -> int:
    """p for a picture: the smallest power of two that keeps its tokens within 64 x 64, and at least 16."""
    wanted = math.sqrt(height * width) / GRID
    return max(SMALLEST_PATCH, 1 << math.ceil(math.log2(wanted)))


def preset_spec(name: str, height: int, width: int, head: str = "patch", num_steps: int = 1) -> StudentSpec:
    """Spec of a preset's student for pictures of a size.

    Args:
        head: "patch", or "unet" for L2P's Detailer at its published width on the same core.
    """
    preset, patch = find_preset(name), patch_size_for(height, width)
    heads = {
        "unet": {"kind": "unet", "width": 64},
        "patch": {
            "kind": "patch",
            "fine_patch": max(8, patch // 8),
            "width": preset.head_width,
            "num_blocks": preset.num_blocks,
            "head_dim": preset.head_dim,
            "tile": 8,
            "halo": 4,
        },
    }
    return StudentSpec(
        patch_size=patch,
        latent_dim=LATENT_DIM,
        lift_scale=1.0,
        core=dict(preset.core),
        head=heads[head],
        num_steps=num_steps,
        height=height,
        width=width,
        teacher={"name": f"random weights of the preset {name}"},
        project_noise=True,
    )


def random_student(
    name: str,
    height: int,
    width: int,
    head: str = "patch",
    num_steps: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PixelStudent:
    """A preset's student, in evaluation mode, with random weights made on the device in `dtype`; see `randomise`.

    Its basis is orthonormal, as a lift's is, so that noise in the span is white.
    """
    with torch.device("meta"):
        student = PixelStudent(preset_spec(name, height, width, head, num_steps)).to(dtype)
    randomise(student.to_empty(device=device))
    basis = torch.linalg.qr(student.basis.float())[0]
    for part in (student, student.head):
        if hasattr(part, "basis"):
            part.basis.copy_(basis)
    return student.eval()


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Small random weights everywhere, ones where a norm scales: nothing is zero, so nothing can be skipped."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if not value.is_floating_point() or value.device.type == "meta":
            continue
        generator = generators.setdefault(value.device, torch.Generator(value.device).manual_seed(seed))
        if "norm" in name and value.ndim == 1:
            value.fill_(1.0)
        else:
            fan_in = value[0].numel() if value.ndim > 1 else 1e4
            value.normal_(std=fan_in**-0.5, generator=generator)
