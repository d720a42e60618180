"""Published L2P weights (arXiv 2605.12013) as students: Z-Image's transformer on pixel patches, and the U-Net head.

What the files hold is the published code's ``ZImageDiT`` (github TencentYoutuResearch/T2I-L2P and, for 4096 px,
HaojunChen663/PixVerve-95K, folder L2P-ZImage-HR): Z-Image's own modules under Z-Image's own names, no final layer, and
``local_decoder``, which reads the noisy picture and the last block's image tokens. The network is told ``1 - t`` and
writes minus the velocity, as Z-Image does; its pictures are drawn by Euler steps at times shifted by 3.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from l2p.checksums import write_checksums
from l2p.errors import UserError
from l2p.files import atomic_path, read_json, write_json
from l2p.hub.client import HubName
from l2p.published.checkpoint import Checkpoint, Source
from l2p.students import weights
from l2p.students.io import CONFIG, config_of
from l2p.students.presets import PRESETS
from l2p.students.student import PixelStudent, StudentSpec

if TYPE_CHECKING:
    from l2p.students.weights import Entry

PAPER = "https://arxiv.org/abs/2605.12013"
SHIFT = 3.0  # of the times, in the published sampler at every size
LATENT_DIM = 64  # of Z-Image's own token; a published student has no lift, and its basis is zero
TEXTS = ("text_encoder", "tokenizer")


@dataclass(frozen=True)
class L2PVariant:
    """One published file.

    Attributes:
        repo, file: on the Hub.
        license: as far as it is known, see docs/import.md.
        patch_size: of the core's tokens.
        levels: names of the head's levels in the file, from full resolution down: ``enc1`` and ``dec1`` are of level 1.
        width, widest: of the head, see :class:`l2p.students.heads.UNetHead`.
        size: pixels a side of the pictures.
        num_steps, guidance_scale: that its page draws with.
        teacher: whose text encoder and tokenizer it reads prompts with, and whose transformer it began as.
        core: sizes of the transformer.
    """

    repo: str
    file: str
    license: str
    patch_size: int
    levels: tuple[str, ...]
    width: int
    widest: int
    size: int
    num_steps: int
    guidance_scale: float
    teacher: str
    core: dict[str, Any] = field(default_factory=lambda: dict(PRESETS["z-image"].core))

    def spec(self, license: str | None = None) -> StudentSpec:
        head = {"kind": "unet", "width": self.width, "widest": self.widest, "writes": "minus_velocity"}
        teacher = {"name": self.teacher, "revision": None, "license": license or self.license}
        return StudentSpec(
            patch_size=self.patch_size,
            latent_dim=LATENT_DIM,
            lift_scale=1.0,
            core=dict(self.core),
            head=head,
            num_steps=self.num_steps,
            height=self.size,
            width=self.size,
            teacher={**teacher, "pipeline": "ZImagePipeline"},
            guidance_scale=self.guidance_scale,
            shift=SHIFT,
        )


L2P_VARIANTS = {
    "l2p-1k": L2PVariant(
        repo="zhen-nan/L2P",
        file="model-1k-merge.safetensors",
        license="apache-2.0",
        patch_size=16,
        levels=("1", "2", "3", "4"),
        width=64,
        widest=8,
        size=1024,
        num_steps=30,
        guidance_scale=2.0,
        teacher="Tongyi-MAI/Z-Image-Turbo",
    ),
    "l2p-4k": L2PVariant(
        repo="HaojunChen/PixVerve-L2P",
        file="trained_models/l2p_4k_sft.safetensors",
        license="unknown",
        patch_size=64,
        levels=("0", "0b", "1", "2", "3", "4"),
        width=16,
        widest=32,
        size=4096,
        num_steps=50,
        guidance_scale=4.0,
        teacher="Tongyi-MAI/Z-Image",
    ),
}


def names(variant: L2PVariant) -> dict[str, tuple[str, Tensor]]:
    """Every name of the published file: the student's own name for it, and a tensor of its shape on the meta device."""
    return {published: pair for published, *pair in _names(variant)}


def _names(variant: L2PVariant) -> Iterator[tuple[str, str, Tensor]]:
    with torch.device("meta"):
        state = PixelStudent(variant.spec()).state_dict()
    parts = {"bottleneck": "bottleneck.0", "out": "out_conv"}
    for level, name in enumerate(variant.levels):
        parts |= {
            f"down.{level}": f"enc{name}.0",
            f"up.{level}": f"up{name}.1",
            f"merge.{level}": f"dec{name}.0",
        }
    for own, tensor in state.items():
        if own.startswith("core.transformer."):
            yield own.removeprefix("core.transformer."), own, tensor
        elif own.startswith("head."):
            part, _, kind = own.removeprefix("head.").rpartition(".")
            yield f"local_decoder.{parts[part]}.{kind}", own, tensor


def import_l2p(
    name: str,
    variant: L2PVariant,
    source: Source,
    out: Path,
    license: str | None,
    text_encoder: str | None,
) -> None:
    """Write a student's folder from a published file, tensor by tensor in the dtype it has there.

    Args:
        license: of the weights where their page tells; else the variant's.
        text_encoder: a folder with ``text_encoder/`` and ``tokenizer/``, which are copied, or a name on the Hub, which
            is noted; the variant's teacher if None.

    Raises:
        UserError: a file that is not this variant's, values that are not finite, or a text encoder of another width.
    """
    checkpoint = Checkpoint(source.path)
    wanted = names(variant)
    _check(name, wanted, checkpoint.entries, source.path)
    spec = variant.spec(license)
    texts, reference = _texts(text_encoder or variant.teacher, spec)
    extra: dict[str, Any] = {"source": provenance(source, variant.repo, license or variant.license, PAPER)}
    if reference is not None:
        extra["text_encoder"] = reference
    config = config_of(spec, extra)
    published_as = {own: published for published, (own, _) in wanted.items()}
    lift = {"basis": (3 * spec.patch_size**2, spec.latent_dim), "offset": (3 * spec.patch_size**2,)}
    state = {
        own: tensor.to(weights.FLOATS[checkpoint.entries[published].dtype])
        for published, (own, tensor) in wanted.items()
    }
    state |= {key: torch.empty(shape, device="meta") for key, shape in lift.items()}
    with atomic_path(out) as partial:
        partial.mkdir()
        weights.write_weights(
            state,
            partial,
            {"format": "pt", "config": json.dumps(config)},
            read=lambda key: torch.zeros(lift[key]) if key in lift else checkpoint.read(published_as[key]),
        )
        write_json(partial / CONFIG, config)
        for part in TEXTS if texts is not None else ():
            shutil.copytree(texts / part, partial / part)
        write_checksums(partial)


def provenance(source: Source, repo: str, license: str, paper: str) -> dict[str, Any]:
    """What a folder tells of where its weights come from; of a local file, what it claims to be."""
    return {
        "name": source.name or repo,
        "file": source.file,
        "revision": source.revision,
        "fetched_from_hub": source.name is not None,
        "license": license,
        "paper": paper,
    }


def _check(variant: str, wanted: dict[str, tuple[str, Tensor]], found: dict[str, Entry], path: Path) -> None:
    packed = [
        name
        for name in found
        if name.endswith("attention.qkv.weight") or name.startswith("model.diffusion_model.")
    ]
    if packed:
        raise UserError(
            f"{path} is laid out for ComfyUI ({packed[0]}): expected the file as it was published, "
            "such as zhen-nan/L2P:model-1k-merge.safetensors"
        )
    outer = [name for name in found if ".enc_8k." in name or ".enc_10k_a." in name]
    if outer:
        raise UserError(
            f"{path} is an L2P of 8192 or 10240 px ({outer[0]}): those of 1024 and 4096 px can be read"
        )
    weights.check_entries(
        {name: tensor for name, (_, tensor) in wanted.items()}, found, path, f"the variant {variant}"
    )


def _texts(text_encoder: str, spec: StudentSpec) -> tuple[Path | None, dict[str, str] | None]:
    folder = Path(text_encoder)
    if not folder.is_dir():
        name = HubName.of_input(text_encoder)
        if name is None:
            raise UserError(
                f"no text encoder at {text_encoder!r}: expected a folder with text_encoder/ and tokenizer/, or a name on "
                f"the Hub such as {spec.teacher['name']}"
            )
        return None, {"name": name.repo, "revision": name.revision or "main"}
    missing = [part for part in TEXTS if not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}/ folder: it needs a text encoder and a tokenizer")
    width = read_json(folder / TEXTS[0] / "config.json").get("hidden_size")
    if width != spec.core["cap_feat_dim"]:
        raise UserError(
            f"the text encoder in {folder} has width {width}, this student reads {spec.core['cap_feat_dim']}: "
            f"take that of {spec.teacher['name']}"
        )
    return folder, None
