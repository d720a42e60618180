"""Tiny pipelines of the real diffusers classes with random weights, one a family: for tests, and for ``--tiny``.

``PIPELINES[name]()`` takes well under a second. Constants (scaling, shift, statistics) are odd on purpose, so that one
left out or applied twice shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from l2p.checksums import write_checksums
from l2p.errors import UserError
from l2p.files import read_json
from l2p.teachers.tiny import flows, noises
from l2p.teachers.tiny.parts import WORDS

PIPELINES: dict[str, Callable[[], Any]] = {
    "ZImagePipeline": flows.z_image,
    "FluxPipeline": flows.flux,
    "FluxPipeline (schnell)": flows.flux_schnell,
    "Flux2Pipeline": flows.flux2,
    "Flux2KleinPipeline": flows.flux2_klein,
    "Flux2KleinPipeline (distilled)": flows.flux2_klein_distilled,
    "QwenImagePipeline": flows.qwen_image,
    "ChromaPipeline": flows.chroma,
    "StableDiffusion3Pipeline": flows.sd3,
    "StableDiffusionXLPipeline": noises.sdxl,
    "StableDiffusionPipeline": noises.sd15,
    "PixArtSigmaPipeline": noises.pixart,
    "SanaPipeline": flows.sana,
    "DiTPipeline": noises.dit,
}

__all__ = ["PIPELINES", "WORDS", "name_for", "prompts_for", "save"]


def name_for(path: str | Path) -> str:
    """The pipeline of ``PIPELINES`` that stands for a teacher: a folder of one, or a published name.

    Raises:
        UserError: neither; a name on the Hub tells nothing of its family before it is fetched.
    """
    from l2p.teachers import FAMILIES, published_as, resolve

    if found := published_as(str(path)):
        family, published = found
        return (
            f"{family.pipeline_class} ({published.variant})" if published.variant else family.pipeline_class
        )
    if not Path(path).is_dir() and "/" in str(path):
        raise UserError(
            f"what {path} is cannot be known before it is here: set teacher.path to a published name of its family "
            "(see l2p teachers), or to a folder"
        )
    folder = resolve(path)
    index = read_json(folder / "model_index.json")
    family = FAMILIES.get(index.get("_class_name"))
    if family is None:
        raise UserError(f"{folder} holds a {index.get('_class_name')}, expected one of {', '.join(FAMILIES)}")
    name = family.pipeline_class
    if name == "FluxPipeline" and not read_json(folder / "transformer" / "config.json").get(
        "guidance_embeds"
    ):
        return f"{name} (schnell)"
    return f"{name} (distilled)" if index.get("is_distilled") else name


def prompts_for(name: str) -> list[str]:
    """A few prompts that the pipeline of this name reads."""
    return ["0", "7"] if name == "DiTPipeline" else WORDS


def save(name: str, folder: str | Path, seed: int = 0) -> None:
    """Write the pipeline of this name as a folder that `load_teacher` reads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        PIPELINES[name]().save_pretrained(folder, safe_serialization=True)
    write_checksums(Path(folder))
