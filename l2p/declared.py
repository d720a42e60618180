"""What a folder's weight files declare, and whether its configs and indices ask for no more, before a network is built.

Libraries build a network as a config says, and look for its weights only then: a config of some bytes may ask for a million
layers. Every layer has a tensor and every width is a side of one, so the headers of the weights bound both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.files import PathLike, read_json
from l2p.students.weights import entries_of

COUNTS = re.compile(r"layers|blocks|depth|experts|n_layer$")
WIDTHS = re.compile(r"(dims?|channels|width|hidden_size|intermediate_size|vocab_size|d_model|d_ff|d_kv)$")
SIDES = re.compile(r"^(sample_size|pos_embed_max_size)$")  # a transformer has a table of its square
LENGTHS = re.compile(r"(lens|_lens_\w+|timesteps|_steps)$")
FREE = re.compile(r"theta|_ids?$|seed|base$|max_length$|max_window_layers$")  # nothing is built of them
SPARE_LAYERS = 64  # beyond the tensors there are: configs also describe parts that a checkpoint lacks
LEAST_WIDTH, LEAST_LIST = 2**14, 4096  # that any config may ask for
MOST_SIDE, MOST_LENGTH, MOST = 512, 2**17, 2**24
DEEPEST = 24
SHARD = re.compile(r"\w[\w.-]*\.safetensors")


@dataclass(frozen=True)
class Declared:
    """Of a network's weight files: how many tensors there are, and the longest side of one."""

    tensors: int
    widest: int

    @classmethod
    def of(cls, shapes: Iterable[tuple[int, ...]]) -> Declared:
        listed = list(shapes)
        return cls(len(listed), max((side for shape in listed for side in shape), default=0))


def check_config(config: Mapping[str, Any], declared: Declared, source: PathLike) -> None:
    """Raises: UserError for a config that would build more layers or wider ones than the weights can fill, or endless tables."""
    layers = declared.tensors + SPARE_LAYERS
    is_transformer = "attention_head_dim" in config and "patch_size" in config

    def limit_of(key: str) -> int | None:
        if FREE.search(key):
            return None
        if WIDTHS.search(key):
            return max(LEAST_WIDTH, 2 * declared.widest)
        if COUNTS.search(key):
            return layers
        if SIDES.search(key):
            return MOST_SIDE if is_transformer else MOST_LENGTH
        return MOST_LENGTH if LENGTHS.search(key) else MOST

    def walk(key: str, value: Any, depth: int) -> None:
        if depth > DEEPEST:
            raise _broken(source, f"{key[:60]} is nested deeper than {DEEPEST} levels")
        if isinstance(value, Mapping):
            for name, item in value.items():
                walk(str(name), item, depth + 1)
        elif isinstance(value, (list, tuple)):
            builds = WIDTHS.search(key) or any(isinstance(item, str) for item in value)
            if len(value) > (layers if builds else LEAST_LIST + declared.tensors):
                raise _broken(source, f"{key[:60]} has {len(value):,} entries")
            for item in value:
                walk(key, item, depth + 1)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            most = limit_of(key)
            if (
                most is not None
                and not abs(value) <= most
                and not (isinstance(value, float) and most == MOST)
            ):
                raise _broken(source, f"{key[:60]} is beyond {most:,}, which its weights bear out")

    walk("", config, 0)
    levels = max((len(v) for v in config.values() if isinstance(v, (list, tuple))), default=1)
    for key, value in config.items():
        each = max(
            (n for n in (value if isinstance(value, (list, tuple)) else [value]) if type(n) is int), default=0
        )
        if key.endswith("layers_per_block") and each * levels > layers:
            raise _broken(source, f"{key} is {each} at {levels} levels, more than its weights bear out")


def check_part(folder: Path) -> None:
    """What diffusers and transformers will read of a part of a pipeline: its index, and its config beside its weights.

    Raises:
        UserError: an index that names other files than safetensors of this folder; an adapter, whose base may lie anywhere; a
            config as in :func:`check_config`; broken weights.
    """
    for index in sorted(folder.glob("*.index*.json")):
        found = read_json(index)
        names = found.get("weight_map") if isinstance(found, dict) else None
        for name in set(map(str, names.values())) if isinstance(names, dict) else ["no files"]:
            if ".bin." not in index.name and not (SHARD.fullmatch(name) and (folder / name).is_file()):
                raise UserError(f"{index} names {name[:80]!r}, expected .safetensors files beside it")
    if (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is a pipeline inside a pipeline, which no teacher has")
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter of a model that may lie anywhere: merge it into its model first"
        )
    files = [path for path in sorted(folder.glob("*.safetensors")) if path.is_file()]
    declared = Declared.of(entry.shape for path in files for entry in entries_of(path).values())
    for path in (folder / "config.json", folder / "scheduler_config.json"):
        if path.is_file():
            config = read_json(path)
            if not isinstance(config, dict):
                raise UserError(f"{path} is no config: expected a mapping")
            check_config(config, declared, path)


def _broken(source: PathLike, reason: str) -> UserError:
    return UserError(f"{source} is broken ({reason}): restore the file")
