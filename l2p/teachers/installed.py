"""Classes of diffusers and transformers that a checkpoint asks for, and what to do where the installed ones lack them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from l2p.declared import check_part
from l2p.errors import UserError
from l2p.files import read_json
from l2p.teachers.tokenizer_file import check_tokenizer_file

LIBRARIES = ("diffusers", "transformers")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def diffusers_class(name: str) -> Any:
    """diffusers' class of this name. Raises UserError where the installed diffusers has none."""
    import diffusers

    found = getattr(diffusers, name, None)
    if found is None:
        raise UserError(_too_old("diffusers", name))
    return found


def model_class(folder: Path, name: Any) -> Any:
    """transformers' model class that a config names. Raises UserError for anything else."""
    import transformers

    found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise UserError(f"{folder} names no model of transformers: {name!r}")
    return found


def attention_of(loader: Any, folder: Path) -> str:
    """How a class of transformers computes attention here: torch's own product, or written out where it has no other way.

    Never what a config says: transformers takes a name with a slash for code to fetch from the Hub.
    """
    if hasattr(loader, "_model_mapping"):  # an automatic class: the one that it would choose
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        loader = loader._model_mapping[type(config)]
    return "sdpa" if getattr(loader, "_supports_sdpa", False) else "eager"


def read_pipeline_index(folder: Path) -> dict[str, Any]:
    """The ``model_index.json`` of a pipeline's folder. Raises UserError where it is none."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise UserError(f"{folder} is no diffusers pipeline: model_index.json is missing")
    index = read_json(path)
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UserError(f"{path} names no pipeline: expected a mapping with the text _class_name")
    return index


def check_pipeline_folder(folder: Path, index: Mapping[str, Any]) -> None:
    """Find what in a pipeline's folder would have code imported that is not diffusers' or transformers' own.

    Raises:
        UserError: a part of another library, which diffusers would import by its name; attention code on the Hub; an
            automatic class with an ``auto_map``; or as :func:`l2p.declared.check_part`.
    """
    from diffusers import pipelines

    for name, part in index.items():
        if not isinstance(part, list) or part == [None, None]:
            continue
        own = len(part) == 2 and all(isinstance(word, str) and word.isidentifier() for word in part)
        if not own or not (part[0] in LIBRARIES or hasattr(pipelines, part[0])):
            raise UserError(
                f"{folder / 'model_index.json'} takes {name} from {part!r}: expected a class of diffusers or transformers"
            )
        check_part(folder / name)
        check_tokenizer_file(folder / name)
        if name.startswith("tokenizer"):
            check_tokenizer(folder / name)
        for file in sorted((folder / name).glob("*config.json")):
            config = read_json(file)
            if not isinstance(config, dict):
                raise UserError(f"{file} is no config: expected a mapping")
            _check_config(file, config)
            if part[1].startswith("Auto") and config.get("auto_map"):
                raise UserError(
                    f"{file} names code of its own (auto_map), and none is run: take another teacher"
                )


def check_tokenizer(folder: Path) -> None:
    """Raises: UserError for a folder without the settings of its tokenizer, which would be read as some other one's."""
    if folder.is_dir() and not (folder / "tokenizer_config.json").is_file():
        raise UserError(
            f"{folder / 'tokenizer_config.json'} is missing: the folder is incomplete; get it anew"
        )


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key in ATTENTION_KEYS and (isinstance(value, dict) or "/" in str(value)):
            raise UserError(
                f"{file} names attention code on the Hub ({key}), and none is fetched: remove the line"
            )
        if isinstance(value, dict):
            _check_config(file, value)


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
