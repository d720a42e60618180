"""Latent teachers: one protocol, one file a family, and the bundled ``landscapes`` pipeline.

A new family is a file with a :class:`~l2p.teachers.protocol.Teacher` and a line in ``FAMILIES``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from l2p.artifacts import hash_pipeline
from l2p.checksums import check_folder
from l2p.errors import UserError
from l2p.files import read_json
from l2p.hub.client import TEXTS, HubName, cached_commit, commit_of, download
from l2p.teachers.chat_template import bound_chat_templates
from l2p.teachers.chroma import ChromaTeacher
from l2p.teachers.dit import DiTTeacher
from l2p.teachers.flux import FluxTeacher
from l2p.teachers.flux2 import Flux2KleinTeacher, Flux2Teacher
from l2p.teachers.installed import check_pipeline_folder, diffusers_class, missing_class, read_pipeline_index
from l2p.teachers.pixart import PixArtTeacher
from l2p.teachers.protocol import Conditioning, LatentGeometry, Published, Teacher
from l2p.teachers.qwen_image import QwenImageTeacher
from l2p.teachers.sana import SanaTeacher
from l2p.teachers.sd3 import SD3Teacher
from l2p.teachers.sdxl import SD15Teacher, SDXLTeacher
from l2p.teachers.text import PipelineEncoder, PromptEncoder, TextEncoder
from l2p.teachers.tokenizer_file import refusing_panics
from l2p.teachers.z_image import ZImageTeacher

FAMILIES: dict[str, type[Teacher]] = {
    family.pipeline_class: family
    for family in (
        ZImageTeacher,
        FluxTeacher,
        Flux2Teacher,
        Flux2KleinTeacher,
        QwenImageTeacher,
        ChromaTeacher,
        SD3Teacher,
        SDXLTeacher,
        SD15Teacher,
        PixArtTeacher,
        SanaTeacher,
        DiTTeacher,
    )
}
BUNDLED = Path(__file__).parent / "bundled"

__all__ = [
    "BUNDLED",
    "FAMILIES",
    "Conditioning",
    "LatentGeometry",
    "Published",
    "Teacher",
    "PromptEncoder",
    "TextEncoder",
    "family_of",
    "is_local_teacher",
    "license_of",
    "load_teacher",
    "load_text_encoder",
    "published_as",
    "published_configs",
    "resolve",
    "teacher_sha256",
]


PATTERNS = (*TEXTS, "*.safetensors")
# Of a pipeline only what lies in its folders: several repositories also hold all weights in one file beside them.
PARTS = (*TEXTS, "README.md", "*/*.safetensors")
VARIANTS = ("*.fp16*.safetensors", "*.non_ema*.safetensors")  # the same weights once more


def resolve(path: str | Path, revision: str | None = None) -> Path:
    """Folder of a teacher: a bundled name, a local folder, or a Hub name (downloaded into the Hub's cache)."""
    if (BUNDLED / str(path) / "model_index.json").is_file():
        return BUNDLED / str(path)
    if Path(path).is_dir():
        return Path(path)
    name = hub_name(path)
    return download(HubName(name.repo, revision or name.revision), PARTS, ignore=VARIANTS)


def hub_name(path: str | Path) -> HubName:
    """The name on the Hub of a teacher that is neither bundled nor a folder here. Raises UserError where it can be none."""
    name = HubName.of_input(str(path))
    if name is None:
        bundled = sorted(p.parent.name for p in BUNDLED.glob("*/model_index.json"))
        raise UserError(
            f"no teacher at {str(path)!r}: expected a folder, a Hub name such as Tongyi-MAI/Z-Image-Turbo, or {bundled}"
        )
    return name


def is_local_teacher(path: str | Path) -> bool:
    """Whether a teacher is bundled or a folder here, and no name on the Hub."""
    return (BUNDLED / str(path) / "model_index.json").is_file() or Path(path).is_dir()


def teacher_sha256(path: str | Path, revision: str | None = None) -> str | None:
    """What tells a teacher from others of its name, without loading or fetching it: the hash of a folder's files, or the
    commit of one in the Hub's cache; None where it is not here."""
    for folder in (BUNDLED / str(path), Path(path)):
        if (folder / "model_index.json").is_file():
            return hash_pipeline(folder)
    name = HubName.parse(str(path))
    return name and cached_commit(HubName(name.repo, revision or name.revision))


def load_text_encoder(
    folder: str | Path,
    pipeline_class: str = ZImageTeacher.pipeline_class,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> PromptEncoder:
    """The reader of prompts that lies beside a student, as the teacher's pipeline of this class has it.

    Args:
        dtype: of the weights; "auto" is the one they were saved in, None is fp32.

    Raises:
        UserError: a family not supported, or a part that is missing or broken.
    """
    if pipeline_class not in FAMILIES:
        raise UserError(
            f"{folder} reads prompts as a {pipeline_class}; supported: {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[pipeline_class]
    if family is ZImageTeacher:
        return TextEncoder.from_pretrained(folder, device=device, dtype=dtype)
    return PipelineEncoder.from_pretrained(folder, pipeline_class, family.read_prompts, device, dtype)


def family_of(path: str | Path) -> type[Teacher] | None:
    """The family of a teacher that is here already; None for one that would have to be fetched to know."""
    for folder in (BUNDLED / str(path), Path(path)):
        if (folder / "model_index.json").is_file():
            return FAMILIES.get(read_pipeline_index(folder)["_class_name"])
    return None


def published_as(name: str) -> tuple[type[Teacher], Published] | None:
    """Family and entry of a checkpoint by its name on the Hub, ``@revision`` or not; None for another name."""
    name = name.partition("@")[0].lower()
    for family in FAMILIES.values():
        for published in family.published:
            if published.name.lower() == name:
                return family, published
    return None


@lru_cache(maxsize=1)
def published_configs() -> dict[str, dict[str, Any]]:
    """Configurations of the denoisers of published checkpoints, by name: sizes to count with, before a download."""
    entries = read_json(Path(__file__).parent / "published.json")
    return {name: entry["config"] for entry in entries for name in entry["names"]}


def load_teacher(
    path: str | Path,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Teacher:
    """Load a diffusers pipeline folder (safetensors only, no remote code) as a teacher.

    Raises:
        UserError: not a pipeline folder, a family not supported or not installed, or broken weights.
    """
    folder = resolve(path, revision)
    index = read_pipeline_index(folder)
    class_name = index["_class_name"]
    if class_name not in FAMILIES:
        raise UserError(f"{folder} holds a {class_name}; supported teachers: {', '.join(sorted(FAMILIES))}")
    check_pipeline_folder(folder, index)
    check_folder(folder)
    pipeline_class = diffusers_class(class_name)
    bound_chat_templates()
    try:
        with refusing_panics():
            pipeline = pipeline_class.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except Exception as error:  # diffusers, transformers and safetensors each raise their own kinds
        reason = missing_class(index) or (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot load the teacher in {folder}: {reason}") from error
    pipeline.to(device)
    revision = commit_of(folder) or revision
    teacher = FAMILIES[class_name](pipeline, name=str(path), revision=revision, license=license_of(folder))
    teacher.folder = folder
    return teacher


def license_of(folder: Path) -> str:
    """The licence that the card in a folder names, by ``license_name`` where it is "other"; "unknown" without a card."""
    card = folder / "README.md"
    if not card.is_file():
        return "unknown"
    found = {}
    for line in card.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key in ("license", "license_name"):
            found.setdefault(key, value.strip().strip("\"'"))
    license = found.get("license") or "unknown"
    return found.get("license_name", license) if license == "other" else license
