"""Classes of diffusers and transformers that a checkpoint asks for, and what to do where the installed ones lack them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from l2p.errors import UserError

LIBRARIES = ("diffusers", "transformers")


def diffusers_class(name: str) -> Any:
    """diffusers' class of this name. Raises UserError where the installed diffusers has none."""
    import diffusers

    found = getattr(diffusers, name, None)
    if found is None:
        raise UserError(_too_old("diffusers", name))
    return found


def missing_class(index: Mapping[str, Any]) -> str | None:
    """One line for the first part of a ``model_index.json`` whose class is not installed; None where all are."""
    for part in index.values():
        if isinstance(part, list) and len(part) == 2 and part[0] in LIBRARIES:
            library, name = part
            if getattr(import_module(library), str(name), None) is None:
                return _too_old(library, name)
    return None


def _too_old(library: str, name: str) -> str:
    version = import_module(library).__version__
    return f"{library} {version} has no {name}: it is too old for this model, run `pip install --upgrade {library}`"
