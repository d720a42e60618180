"""Students whose core's linear layers hold eight-bit weights, by `torchao`; the rest is bf16.

int8 is symmetric with a scale an output channel, fp8 is e4m3 likewise; products are computed in bf16. The head is left
alone: a rounded last layer draws bands into skies. In the file such a weight is two or three plain tensors under
torchao's own names, and what they mean is built here and never read from the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from l2p.errors import UserError
from l2p.extras import install_hint
from l2p.runtime import cast_weights
from l2p.students.lora import lora_of

if TYPE_CHECKING:
    from l2p.students.student import PixelStudent

KINDS = ("int8", "fp8")
CORE = "core."  # where the names of quantised tensors start; torchao takes no name without a dot


def quantize(student: PixelStudent, kind: str) -> PixelStudent:
    """Bring a student to bf16 and its core's linear layers to `kind`, in place. Returns it.

    Raises:
        UserError: an unknown kind, a student that is quantised or has adapters, or no torchao.
    """
    if kind not in KINDS:
        raise UserError(f"quantize is {kind!r}, expected one of {', '.join(KINDS)}")
    if student.quantization is not None:
        raise UserError("this student is quantised already: quantise the one that it was made from")
    if lora_of(student) is not None:
        raise UserError("this student has LoRA adapters: merge them first with `l2p export --to merged`")
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise UserError(f"quantised students need torchao: {install_hint('quantize')}") from None
    cast_weights(student, torch.bfloat16)
    config = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind](version=2)
    quantize_(student.core, config, filter_fn=lambda module, name: isinstance(module, nn.Linear))
    student.quantization = {"kind": kind}
    return student


def flat(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A quantised student's state as plain tensors, and torchao's note on how they belong together."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    core = {name: v for name, v in state.items() if name.startswith(CORE)}
    tensors, note = flatten_tensor_state_dict(core)
    return {**tensors, **{name: v for name, v in state.items() if name not in core}}, note


def unflat(state: dict[str, Tensor], note: dict[str, Any]) -> dict[str, Tensor]:
    """The inverse of :func:`flat`."""
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    core = {name: v for name, v in state.items() if name.startswith(CORE)}
    tensors, _ = unflatten_tensor_state_dict(core, note)
    return {**tensors, **{name: v for name, v in state.items() if name not in core}}
