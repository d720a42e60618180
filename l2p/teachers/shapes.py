"""A teacher without its weights: every module of a local pipeline on the meta device, in the time it takes to read its
configs. What is built on it has all shapes and no values, so that a recipe can be tried before anything is loaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from l2p.declared import check_part
from l2p.teachers import BUNDLED, FAMILIES, Teacher, license_of
from l2p.teachers.installed import diffusers_class, read_pipeline_index


def local_pipeline(path: str) -> Path | None:
    """The folder of a teacher that is here; None for one that would have to be fetched."""
    return next((f for f in (BUNDLED / path, Path(path)) if (f / "model_index.json").is_file()), None)


def meta_teacher(path: str) -> Teacher | None:
    """The teacher in a local folder or of a bundled name on the meta device; None for one that is not here.

    Raises:
        OSError, ValueError: configs that diffusers or transformers cannot read; loading the teacher says which.
    """
    folder = local_pipeline(path)
    index = read_pipeline_index(folder) if folder is not None else {}
    family = FAMILIES.get(index.get("_class_name"))
    if folder is None or family is None:
        return None
    parts = {
        name: _part(folder / name, *kind)
        for name, kind in index.items()
        if isinstance(kind, list) and len(kind) == 2 and kind[0] in ("diffusers", "transformers")
    }
    pipeline = diffusers_class(index["_class_name"])(**parts)
    return family(pipeline, name=path, license=license_of(folder))


def _part(folder: Path, library: str, name: str) -> Any:
    check_part(folder)
    cls = getattr(importlib.import_module(library), name)
    if not issubclass(cls, torch.nn.Module):  # a scheduler or a tokenizer: small, and read as it is
        return cls.from_pretrained(folder)
    with torch.device("meta"):
        if library == "diffusers":
            return cls.from_config(cls.load_config(folder))
        return cls(cls.config_class.from_pretrained(folder))
