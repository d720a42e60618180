"""A head that was taught to decode before any student was: what of it depends on no core, on disk.

One head serves all students of teachers that share a VAE, as it maps that VAE's latents to pixels. A new student's core is
joined to it by layers that start at zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2p.checksums import check_file, write_checksums
from l2p.errors import UserError
from l2p.files import read_json, write_json
from l2p.students import weights
from l2p.students.heads.patch import PatchHead

FOLDER = "pixel_head"  # beside the weights of the teacher whose latents it reads
CONFIG = "config.json"


def own_state(head: PatchHead) -> dict[str, Tensor]:
    """The part of the head's state that knows neither core nor lift."""
    foreign = ("open.", "final.", "basis")
    return {
        name: value
        for name, value in head.state_dict().items()
        if not name.startswith(foreign) and ".modulation." not in name
    }


def save_head(head: PatchHead, folder: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    Args:
        config: knobs, ``patch_size`` and ``latent_dim``; :func:`load_head` wants the very same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(dtype) for name, value in own_state(head).items()}
    weights.write_weights(state, folder, {"format": "pt"})
    write_json(folder / CONFIG, config)
    write_checksums(folder)


@torch.no_grad()
def load_head(head: PatchHead, folder: Path, config: dict[str, Any]) -> None:
    """Fill a fresh head; what comes from the core starts at zero.

    Args:
        config: of this head, as for :func:`save_head`.

    Raises:
        UserError: nothing there, another kind of head, or weights that do not fit.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"no pretrained head in {folder}: make one with `l2p train-head`, or set student.head.pretrained=null"
        )
    found = read_json(folder / CONFIG)
    odd = [key for key in config if not isinstance(found, dict) or found.get(key) != config[key]]
    if odd:
        theirs = found.get(odd[0]) if isinstance(found, dict) else None
        raise UserError(
            f"the pretrained head in {folder} has {odd[0]} {theirs}, this student {config[odd[0]]}: "
            f"set student.head.{odd[0]}={theirs}, or student.head.pretrained=null"
        )
    own = own_state(head)
    entries = weights.read_entries(folder)
    weights.check_entries(own, entries, folder)
    check_file(folder / CONFIG)
    state = weights.read_weights(entries, "cpu")
    weights.check_finite(state, folder)
    for name, value in own.items():
        value.copy_(state[name])
    cut_core(head)


@torch.no_grad()
def cut_core(head: PatchHead) -> None:
    """Let nothing of core and noise into the fine tokens but the draft; training may let it in again."""
    head.open.weight.zero_()
    head.open.bias.zero_()
    f = head.fine_patch
    head.embed.weight.view(-1, f * f, head.seen_channels)[..., :3] = (
        0  # the noise's share, as patchify lays it
    )
