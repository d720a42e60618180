"""A pixel diffusion decoder for a teacher's latents: its transformer as the core, its decoder as the draft."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from l2p.decoders.pid import DecoderDraft, HeadDraft, PidSpec, PidStudent
from l2p.errors import UserError
from l2p.students.build import head_config
from l2p.students.cores import CORES
from l2p.students.cores.z_image import ZImageCore
from l2p.students.heads import DETAIL
from l2p.students.heads.pretrained import FOLDER, load_head
from l2p.teachers import resolve

if TYPE_CHECKING:
    from l2p.recipe import HeadConfig
    from l2p.teachers.protocol import LatentGeometry, Teacher


def pid_spec(
    geometry: LatentGeometry,
    scale: int,
    core: dict[str, Any],
    head: HeadConfig,
    draft: dict[str, Any],
    **more: Any,
) -> PidSpec:
    """Spec of a decoder of these latents; no weights are touched.

    Args:
        core: config of a ``ZImageTransformer2DModel``.
        draft: see :class:`PidSpec`.
        more: other fields of the spec.

    Raises:
        UserError: another scale.
    """
    return PidSpec(
        scale=scale,
        channels=geometry.channels,
        compression=geometry.compression,
        packing=geometry.packing,
        core=ZImageCore.config_of(core, {}),
        head={knob: getattr(head, knob) for knob in DETAIL},
        draft=draft,
        **more,
    )


def from_teacher(
    teacher: Teacher,
    scale: int,
    head: HeadConfig,
    draft: str | HeadConfig = "decoder",
    core: dict[str, Any] | None = None,
    **more: Any,
) -> PidStudent:
    """The decoder before any training: it paints a draft of the latents, enlarged by bicubic interpolation.

    Args:
        draft: "decoder" takes the teacher's own; a head's knobs take a patch head, pretrained where it says so.
        core: sizes of a fresh Z-Image transformer; None takes the teacher's, weights and all.
        more: other fields of the spec.

    Raises:
        UserError: a teacher whose transformer or decoder cannot be taken.
    """
    own = core is None
    if own and CORES.get(type(teacher.transformer).__name__) is not ZImageCore:
        raise UserError(
            f"the core of a decoder is a Z-Image transformer, this teacher has a {type(teacher.transformer).__name__}: "
            "give student.core sizes of its own"
        )
    if draft == "decoder" and type(teacher.vae).__name__ != "AutoencoderKL":
        raise UserError(
            f"the draft takes the decoder of an AutoencoderKL, this teacher has a {type(teacher.vae).__name__}: "
            "set student.draft to a head's knobs"
        )
    geometry, empty = teacher.geometry, teacher.empty
    sizes = dict(teacher.transformer.config) if own else {**core, "cap_feat_dim": empty.embeds.shape[-1]}
    drafting = (
        decoder_draft(teacher.vae)
        if draft == "decoder"
        else {"kind": "head", **{knob: getattr(draft, knob) for knob in DETAIL}}
    )
    origin = {"name": teacher.name, "revision": teacher.revision, "license": teacher.license}
    spec = pid_spec(
        geometry, scale, sizes, head, drafting, empty_length=int(empty.lengths[0]), teacher=origin, **more
    )
    student = PidStudent(spec)
    student.no_caption = empty.embeds.detach().float().clone()
    if own:
        _take_core(student, teacher.transformer)
    if isinstance(student.draft, DecoderDraft):
        _take_decoder(student.draft, teacher.vae)
    elif isinstance(student.draft, HeadDraft) and draft.pretrained is not None:
        folder = (
            resolve(teacher.name, teacher.revision) / FOLDER
            if draft.pretrained == "teacher"
            else draft.pretrained
        )
        load_head(student.draft.head, folder, head_config(draft, geometry))
    student.draft.requires_grad_(isinstance(student.draft, HeadDraft) and draft.pretrained is None)
    return student.to(teacher.device)


@torch.no_grad()
def _take_core(student: PidStudent, transformer: nn.Module) -> None:
    """The teacher's transformer, reading latents at their own time; the noisy picture enters through a layer at zero."""
    core = student.core
    state = ZImageCore.teacher_state(transformer)
    first = core.embedder_name
    state[f"{first}.weight"] = torch.zeros_like(core.embedder.weight)
    state[f"{first}.bias"] = torch.zeros_like(core.embedder.bias)
    core.transformer.load_state_dict(state, strict=True)
    weight, bias = ZImageCore.input_proj_weights(transformer)
    student.latent_in.weight.copy_(weight)
    student.latent_in.bias.copy_(bias)
    ZImageCore.copy_norm(student.final, transformer)
    weight, bias = ZImageCore.output_proj_weights(transformer)
    student.final.linear.weight.copy_(weight)
    student.final.linear.bias.copy_(bias)


def _take_decoder(draft: DecoderDraft, vae: nn.Module) -> None:
    own = draft.vae.state_dict()
    draft.vae.load_state_dict(
        {name: value for name, value in vae.state_dict().items() if name in own}, strict=True
    )


def decoder_draft(vae: nn.Module) -> dict[str, Any]:
    """The draft of a spec that is the decoder of this ``AutoencoderKL``."""
    import inspect

    from diffusers import AutoencoderKL

    known = set(inspect.signature(AutoencoderKL.__init__).parameters) - {"self"}
    config = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vae.config.items()
        if key in known
    }
    return {"kind": "decoder", **config}
