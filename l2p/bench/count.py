"""What one picture of a student costs, counted on the meta device: parameters, operations, bytes moved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from l2p.students.build import caption_width
from l2p.students.presets import preset_spec
from l2p.students.student import PixelStudent, StudentSpec
from l2p.teachers.protocol import Conditioning

SIDES = (1024, 2048, 4096, 8192)
CAPTION = 64  # tokens


class BytesMoved(TorchDispatchMode):
    """Sums the bytes of all inputs and outputs of every operator that reads or writes: an eager run, nothing cached."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(
            returned.alias_info is not None for returned in func._schema.returns
        ):  # views move nothing
            tensors = [x for x in tree_leaves((args, kwargs or {}, out)) if isinstance(x, Tensor)]
            self.total += sum(x.numel() * x.element_size() for x in tensors)
        return out


def count(preset: str, side: int) -> dict[str, Any]:
    """Costs of one square picture in bf16 by the preset's student, the head painted whole.

    Returns:
        ``side``, ``patch_size``, ``parameters`` (and those of core and head), ``weight_bytes``, ``core_flops``,
        ``head_flops``, ``flops``, ``core_bytes_moved``, ``head_bytes_moved``, ``bytes_moved``; a multiplication and an
        addition are two operations. The text encoder is not counted.
    """
    return {"side": side, **count_spec(preset_spec(preset, side, side))}


def count_spec(spec: StudentSpec) -> dict[str, Any]:
    """As :func:`count`, for a picture of the spec's own height and width, which are multiples of its patch."""
    p, like = spec.patch_size, {"dtype": torch.bfloat16}
    with torch.device("meta"):
        student = PixelStudent(spec).to(torch.bfloat16).eval()
        tokens = torch.zeros(1, spec.height // p, spec.width // p, 3 * p * p, **like)
        embeds = torch.zeros(1, CAPTION, caption_width(spec.core), **like)
        pooled = torch.zeros(1, spec.core["pooled_projection_dim"], **like) if _pools(spec.core) else None
        x_in, t = torch.zeros(1, 3, spec.height, spec.width, **like), torch.ones(1)
    conditioning = Conditioning(embeds, torch.tensor([CAPTION]), pooled)
    parameters = {
        part: sum(p.numel() for p in getattr(student, part).parameters()) for part in ("core", "head")
    }
    row: dict[str, Any] = {
        "patch_size": p,
        "parameters": sum(parameters.values()),
        "core_parameters": parameters["core"],
        "head_parameters": parameters["head"],
        "weight_bytes": 2 * sum(parameters.values()),
    }
    with torch.no_grad():
        features, c = _counted(row, "core", lambda: student.core(tokens, t, conditioning))
        _counted(row, "head", lambda: student.head(features, c, x_in, t))
    for what in ("flops", "bytes_moved"):
        row[what] = row[f"core_{what}"] + row[f"head_{what}"]
    return row


def _pools(core: dict[str, Any]) -> bool:
    return core.get("class") in ("FluxTransformer2DModel", "SD3Transformer2DModel")


def _counted(row: dict[str, Any], part: str, run: Any) -> Any:
    with FlopCounterMode(display=False) as flops, BytesMoved() as moved:
        out = run()
    row[f"{part}_flops"], row[f"{part}_bytes_moved"] = flops.get_total_flops(), moved.total
    return out
