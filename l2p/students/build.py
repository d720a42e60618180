"""A student from a teacher and a lift: the basis folded into the first layer, and the linear head's last
one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from l2p.errors import UserError
from l2p.students.core import core_config
from l2p.students.heads import KNOBS, LinearHead, PatchHead
from l2p.students.heads.pretrained import FOLDER, load_head
from l2p.students.lora import add_lora, is_adapter, lora_of
from l2p.students.student import PixelStudent, StudentSpec
from l2p.teachers import resolve

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import HeadConfig, StudentConfig, TrainBlocks
    from l2p.teachers.protocol import LatentGeometry, Teacher


def student_spec(
    transformer_config: Mapping[str, Any],
    geometry: LatentGeometry,
    lift_scale: float,
    config: StudentConfig,
    size: tuple[int, int] | None = None,
    teacher: dict[str, Any] | None = None,
) -> StudentSpec:
    """Spec of the student of a teacher with this transformer config; no weights are touched.

    Args:
        size: height and width in pixels that the student is trained on.

    Raises:
        UserError: an unknown head, or a patch that is not the teacher's.
    """
    if config.patch_size != geometry.token_pixels:
        raise UserError(
            f"student.patch_size is {config.patch_size}, a token of this teacher covers "
            f"{geometry.token_pixels} pixels: set student.patch_size={geometry.token_pixels}"
        )
    height, width = size or (None, None)
    return StudentSpec(
        patch_size=config.patch_size,
        latent_dim=geometry.token_dim,
        lift_scale=lift_scale,
        core=core_config(dict(transformer_config)),
        head=_head(config.head),
        num_steps=config.num_steps,
        latest_time=config.latest_time,
        noise_in_span=config.noise_in_span,
        height=height,
        width=width,
        teacher=teacher or {},
    )


def _head(config: HeadConfig) -> dict[str, Any]:
    return {"kind": config.kind, **{knob: getattr(config, knob) for knob in KNOBS.get(config.kind, ())}}


def head_config(config: HeadConfig, geometry: LatentGeometry) -> dict[str, Any]:
    """What a pretrained head and its student must share."""
    return {**_head(config), "patch_size": geometry.token_pixels, "latent_dim": geometry.token_dim}


def from_teacher(
    teacher: Teacher, lift: Lift, config: StudentConfig, size: tuple[int, int] | None = None
) -> PixelStudent:
    """The step-zero student, in the teacher's dtype and on its device; it shares no memory with the teacher.

    With the linear head it draws what the lifted teacher draws; the patch head starts from a draft of that and
    learns what to add and which borders to mend; the U-Net starts fresh.

    Args:
        size: height and width in pixels to record as the student's own.
    """
    origin = {"name": teacher.name, "revision": teacher.revision, "license": teacher.license}
    transformer = teacher.transformer
    spec = student_spec(transformer.config, teacher.geometry, lift.scale, config, size, origin)
    with torch.device("meta"):  # a large core is never initialised only to be overwritten
        student = PixelStudent(spec)

    basis = lift.basis.to(teacher.device)
    embedder = next(iter(transformer.all_x_embedder.values()))
    state = {
        name: tensor.clone()
        for name, tensor in transformer.state_dict().items()
        if not name.startswith(("all_x_embedder.", "all_final_layer."))
    }
    key = f"all_x_embedder.{spec.patch_size}-1"
    state[f"{key}.weight"] = _product(embedder.weight, basis.T)
    state[f"{key}.bias"] = embedder.bias.detach().clone()
    student.core.transformer.load_state_dict(state, strict=True, assign=True)

    student.head = student.new_head().to(teacher.device, embedder.weight.dtype)
    student.basis = basis.float()
    student.offset = lift.offset.to(teacher.device).float()
    final = next(iter(transformer.all_final_layer.values()))
    if isinstance(student.head, LinearHead):
        _fold_head(student.head, final, lift, basis)
    elif isinstance(student.head, PatchHead):
        _start_draft(student.head, final, lift, basis)
        if config.head.pretrained is not None:
            own = config.head.pretrained == "teacher"
            folder = resolve(teacher.name, teacher.revision) / FOLDER if own else Path(config.head.pretrained)
            load_head(student.head, folder, head_config(config.head, teacher.geometry))
    if config.lora is not None:
        add_lora(student, config.lora.rank, config.lora.alpha, list(config.lora.targets))
    student.set_gradient_checkpointing(config.gradient_checkpointing)
    set_trainable(student, config.train_blocks)
    return student


@torch.no_grad()
def _fold_head(head: LinearHead, final: nn.Module, lift: Lift, basis: Tensor) -> None:
    """``s A`` into the teacher's last layer; its sign stays diffusers', minus the velocity."""
    head.final.adaLN_modulation.load_state_dict(final.adaLN_modulation.state_dict())
    head.final.linear.weight.copy_(_product(lift.scale * basis, final.linear.weight))
    head.final.linear.bias.copy_(_product(lift.scale * basis, final.linear.bias))
    head.basis, head.offset = basis.float(), lift.offset.to(basis.device).float()


@torch.no_grad()
def _start_draft(head: PatchHead, final: nn.Module, lift: Lift, basis: Tensor) -> None:
    """The teacher's last layer as it is, and the lift's readout of its latents."""
    head.final.load_state_dict(final.state_dict())
    weight, bias = lift.readout
    head.readout.weight.copy_(weight)
    head.readout.bias.copy_(bias)
    head.basis = basis.float()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in fp64, returned in the weights' dtype (the narrower of the two)."""
    dtype = min(left.dtype, right.dtype, key=lambda kind: kind.itemsize)
    return (left.detach().double() @ right.detach().double()).to(dtype)


def set_trainable(student: PixelStudent, train_blocks: str | TrainBlocks) -> int:
    """Freeze or free the core; the head always trains. Returns the number of trainable values.

    Args:
        train_blocks: "all"; "none" freezes the whole core, its time and caption embedders included; ``first``
            and ``last`` freeze only the main layers between the first n and the last n. Where the core has LoRA
            adapters, they alone train of it.
    """
    student.requires_grad_(True)
    if lora_of(student) is not None:
        for name, parameter in student.core.named_parameters():
            parameter.requires_grad_(is_adapter(name))
    elif train_blocks == "none":
        student.core.requires_grad_(False)
    elif train_blocks != "all":
        layers = student.core.layers
        for layer in layers[train_blocks.first : max(0, len(layers) - train_blocks.last)]:
            layer.requires_grad_(False)
    return sum(p.numel() for p in student.parameters() if p.requires_grad)
