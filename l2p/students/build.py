"""A student from a teacher and a lift: the basis folded into the first layer, and the linear head's last
one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from l2p.errors import UserError
from l2p.students.cores import build_core, core_class
from l2p.students.heads import KNOBS, LinearHead, PatchHead
from l2p.students.heads.pretrained import FOLDER, load_head
from l2p.students.lora import add_lora, is_adapter, lora_of
from l2p.students.presets import own_core
from l2p.students.student import PixelStudent, StudentSpec
from l2p.teachers import LatentGeometry, published_as, published_configs, resolve

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import HeadConfig, StudentConfig, TrainBlocks
    from l2p.students.cores.base import Core
    from l2p.teachers import Teacher

OWN_CORE = "ZImageTransformer2DModel"  # the kind of a core that is not the teacher's


def student_spec(
    transformer_config: Mapping[str, Any],
    geometry: LatentGeometry,
    lift_scale: float,
    config: StudentConfig,
    size: tuple[int, int] | None = None,
    teacher: dict[str, Any] | None = None,
    transformer_class: str = "ZImageTransformer2DModel",
    options: Mapping[str, Any] | None = None,
    noise_generator: str = "philox",
) -> StudentSpec:
    """Spec of the student of a teacher with this transformer config; no weights are touched.

    Args:
        size: height and width in pixels that the student is trained on.
        options: what the core has to know besides, see :data:`l2p.students.cores.base.OPTIONS`.
        noise_generator: that of the pairs it is trained on, see :mod:`l2p.noise`.

    Raises:
        UserError: an unknown head, a patch that is not the teacher's, or a network that no student can keep.
    """
    core = core_class(transformer_class).config_of(transformer_config, options or {})
    if config.patch_size != geometry.token_pixels:
        raise UserError(
            f"student.patch_size is {config.patch_size}, a token of this teacher covers "
            f"{geometry.token_pixels} pixels: set student.patch_size={geometry.token_pixels}"
        )
    if config.interval and not core_class(transformer_class).takes_interval:
        raise UserError(
            f"student.interval needs a core that can be told where a step ends, which that of a {transformer_class} "
            "cannot yet: leave it at false"
        )
    height, width = size or (None, None)
    return StudentSpec(
        patch_size=config.patch_size,
        latent_dim=geometry.token_dim,
        lift_scale=lift_scale,
        core=core,
        head=_head(config.head),
        num_steps=config.num_steps,
        max_timestep=config.max_timestep,
        project_noise=config.project_noise,
        interval=config.interval,
        height=height,
        width=width,
        teacher=teacher or {},
        noise_generator=noise_generator,
    )


def caption_width(network: Mapping[str, Any]) -> int:
    """Width of the caption features that a denoiser of this config reads."""
    keys = ("cap_feat_dim", "joint_attention_dim", "caption_channels", "cross_attention_dim")
    return next(network[key] for key in keys if network.get(key))


def published_spec(
    name: str, config: StudentConfig, size: tuple[int, int], guidance_scale: float = 0.0
) -> StudentSpec:
    """Spec of the student of a published teacher, before anything of it is here.

    Raises:
        UserError: as :func:`student_spec`; or sizes that are not known.
    """
    found, network = published_as(name), published_configs().get(name.partition("@")[0])
    if found is None or network is None:
        known = ", ".join(published_configs())
        raise UserError(f"the sizes of {name} are not known before it is here, those of {known} are")
    family, published = found
    geometry = LatentGeometry(published.channels, published.compression, published.packing)
    origin = {"name": published.name, "license": published.license, "pipeline": family.pipeline_class}
    kind, options = family.denoiser_class, {}
    if config.core is not None:
        kind, network = OWN_CORE, own_core(config.core, caption_width(network))
    elif network.get("guidance_embeds"):
        options["guidance_scale"] = guidance_scale
    return student_spec(network, geometry, 1.0, config, size, origin, kind, options)


def published_student(
    name: str, config: StudentConfig, size: tuple[int, int], guidance_scale: float = 0.0
) -> PixelStudent:
    """The student of :func:`published_spec` on the meta device: all shapes, adapters and what trains, and no weights."""
    with torch.device("meta"):
        student = PixelStudent(published_spec(name, config, size, guidance_scale))
        if config.lora is not None:
            add_lora(student, config.lora.rank, config.lora.alpha, list(config.lora.targets))
    set_trainable(student, config.train_blocks)
    return student


def _head(config: HeadConfig) -> dict[str, Any]:
    return {"kind": config.kind, **{knob: getattr(config, knob) for knob in KNOBS.get(config.kind, ())}}


def head_config(config: HeadConfig, geometry: LatentGeometry) -> dict[str, Any]:
    """What a pretrained head and its student must share."""
    return {**_head(config), "patch_size": geometry.token_pixels, "latent_dim": geometry.token_dim}


def from_teacher(
    teacher: Teacher,
    lift: Lift,
    config: StudentConfig,
    size: tuple[int, int] | None = None,
    guidance_scale: float = 0.0,
    noise_generator: str = "philox",
) -> PixelStudent:
    """The step-zero student, in the teacher's dtype and on its device; it shares no memory with the teacher.

    With the linear head it draws what the lifted teacher draws; the patch head starts from a draft of that and
    learns what to add and which borders to mend; the U-Net starts fresh. With a core of its own (``config.core``) it
    draws nothing yet.

    Args:
        size: height and width in pixels to record as the student's own.
        guidance_scale: the guidance that the core is told, where the teacher takes it as an input.
        noise_generator: that of the pairs it is trained on, see :mod:`l2p.noise`.

    Raises:
        UserError: the teacher's network is one that no student can keep, or a patch that is not the teacher's.
    """
    origin = {"name": teacher.name, "revision": teacher.revision, "license": teacher.license}
    origin["pipeline"] = teacher.pipeline_class
    transformer, kind = teacher.transformer, type(teacher.transformer).__name__
    options = {
        **teacher.core_options,
        **({"guidance_scale": guidance_scale} if teacher.guidance_kind == "input" else {}),
    }
    sizes = transformer.config
    if config.core is not None:
        transformer, kind, options = None, OWN_CORE, {}
        sizes = own_core(config.core, teacher.text_encoder.width)
    spec = student_spec(
        sizes, teacher.geometry, lift.scale, config, size, origin, kind, options, noise_generator
    )
    with torch.device("meta"):  # a large core is never initialised only to be overwritten
        student = PixelStudent(spec)

    basis = lift.basis.to(teacher.device)
    like = torch.empty(0, device=teacher.device, dtype=next(teacher.transformer.parameters()).dtype)
    state = _core_state(student, transformer, basis, like, config.random_core)
    student.core.transformer.load_state_dict(state, strict=True, assign=True)

    if spec.interval:
        student.core.span_embedder = student.core.new_span_embedder().to(like)
    student.head = student.new_head().to(like)
    student.basis = basis.float()
    student.offset = lift.offset.to(teacher.device).float()
    if isinstance(student.head, LinearHead):
        _fold_head(student.head, type(student.core), transformer, lift, basis)
    elif isinstance(student.head, PatchHead):
        _start_draft(student.head, type(student.core), transformer, lift, basis)
        if config.head.pretrained is not None:
            own = config.head.pretrained == "teacher"
            folder = resolve(teacher.name, teacher.revision) / FOLDER if own else Path(config.head.pretrained)
            load_head(student.head, folder, head_config(config.head, teacher.geometry))
    if config.lora is not None:
        add_lora(student, config.lora.rank, config.lora.alpha, list(config.lora.targets))
    student.set_gradient_checkpointing(config.gradient_checkpointing)
    set_trainable(student, config.train_blocks)
    return student.to(teacher.device)


def _core_state(
    student: PixelStudent, transformer: nn.Module | None, basis: Tensor, like: Tensor, random: bool
) -> dict[str, Tensor]:
    """Weights of the student's core: the teacher's with the basis folded in, or random ones in its place.

    Args:
        transformer: the teacher's; None for a core of the student's own.
        like: an empty tensor on the device and in the dtype of the weights.
    """
    spec, core = student.spec, student.core
    fresh: dict[str, Tensor] = {}
    if transformer is None or random:
        fresh = build_core(spec.core, spec.patch_size).transformer.to(like).state_dict()
    if transformer is None:
        for name in fresh:
            if "pad_token" in name:  # diffusers leaves them unset
                fresh[name] = torch.randn(fresh[name].shape).mul(0.02).to(like)
        return fresh
    weight, bias = core.input_proj_weights(transformer)
    state = core.teacher_state(transformer)
    state[f"{core.embedder_name}.weight"] = _product(weight, basis.T)
    if bias is not None:
        state[f"{core.embedder_name}.bias"] = bias.detach().clone()
    return {name: fresh[name] if random and "pad_token" not in name else state[name] for name in state}


@torch.no_grad()
def _fold_head(
    head: LinearHead, core: type[Core], transformer: nn.Module | None, lift: Lift, basis: Tensor
) -> None:
    """``s A`` into the teacher's last layer; its output is minus the velocity. Without a teacher's layer: zeros."""
    if transformer is None:
        _zero(head.final.linear)
    else:
        core.copy_norm(head.final, transformer)
        weight, bias = core.output_proj_weights(transformer)
        head.final.linear.weight.copy_(_product(lift.scale * basis, weight))
        if bias is not None:
            head.final.linear.bias.copy_(_product(lift.scale * basis, bias))
    head.basis, head.offset = basis.float(), lift.offset.to(basis.device).float()


@torch.no_grad()
def _start_draft(
    head: PatchHead, core: type[Core], transformer: nn.Module | None, lift: Lift, basis: Tensor
) -> None:
    """The teacher's last layer as it is (zeros without one), and the lift's readout of its latents."""
    if transformer is None:
        _zero(head.final.linear)
    else:
        core.copy_norm(head.final, transformer)
        weight, bias = core.output_proj_weights(transformer)
        head.final.linear.weight.copy_(weight)
        if bias is not None:
            head.final.linear.bias.copy_(bias)
    weight, bias = lift.readout
    head.readout.weight.copy_(weight)
    head.readout.bias.copy_(bias)
    head.basis = basis.float()


def _zero(layer: nn.Linear) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


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
    if student.core.span_embedder is not None:  # the teacher has none: it starts at zero and must learn
        student.core.span_embedder.requires_grad_(True)
    return sum(p.numel() for p in student.parameters() if p.requires_grad)
