"""A module's weights on disk: one safetensors file, or shards and their index; strict in both directions.

What lies on the disk is looked at before it is read: names, shapes and number formats come from the files' headers, so
that a file that does not fit costs no memory and is explained in one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from l2p.checksums import check_file
from l2p.errors import UserError
from l2p.files import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
SHARD_BYTES = 5_000_000_000  # the Hub's own advice; larger files cannot be shown or resumed well
# What a quantised tensor must be, to the letter; any of FLOATS may stand for another.
EXACT = {torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3"}
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Entry:
    """A tensor as a file's header declares it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def write_weights(
    state: Mapping[str, Tensor],
    folder: Path,
    metadata: dict[str, str],
    shard_bytes: int = SHARD_BYTES,
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """Write ``model.safetensors``, or above ``shard_bytes`` shards and ``model.safetensors.index.json``.

    Args:
        metadata: texts kept in the file's header; when sharded in the index and in each shard.
        read: gives a tensor when its file is written; ``state`` may then lie on the meta device, and what is larger than
            the memory passes through it file by file.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    if read is None:  # parts of a larger tensor: the plan below takes them for one another
        state = {k: v if v.nbytes == v.untyped_storage().nbytes() else v.clone() for k, v in state.items()}

    plan = split_torch_state_dict_into_shards(
        dict(state), filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    for name, keys in plan.filename_to_tensors.items():
        tensors = {key: (state[key] if read is None else read(key)).contiguous() for key in keys}
        save_file(tensors, folder / name, metadata=metadata)
    if plan.is_sharded:
        index = {"metadata": {**plan.metadata, **metadata}, "weight_map": plan.tensor_to_filename}
        write_json(folder / INDEX, index)


def read_metadata(folder: Path) -> dict[str, str]:
    """What the header (or, when sharded, the index) says beside the tensors. Raises UserError for a broken file."""
    if (folder / WEIGHTS).is_file():
        with _opened(folder / WEIGHTS) as file:
            return file.metadata() or {}
    return dict(_read_index(folder / INDEX).get("metadata") or {})


def read_entries(folder: Path) -> dict[str, Entry]:
    """All tensors of the folder by name, from the headers. Raises UserError when a file is missing or broken."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).exists():
        return entries_of(folder / WEIGHTS)
    weight_map = _read_index(folder / INDEX)["weight_map"]
    found: dict[str, Entry] = {}
    for name in sorted(set(weight_map.values())):
        for key, entry in entries_of(folder / name).items():
            if weight_map.get(key) != name:
                raise UserError(
                    f"{folder / name} holds {key}, which {INDEX} looks for in {weight_map.get(key, 'no file')}: "
                    "save or download the student again"
                )
            found[key] = entry
    missing = [key for key in weight_map if key not in found]
    if missing:
        raise UserError(
            f"the shards in {folder} lack what {INDEX} promises; missing: {few(missing)}: "
            "save or download the student again"
        )
    return found


def read_weights(
    entries: Mapping[str, Entry], device: torch.device | str, dtypes: Mapping[str, torch.dtype] | None = None
) -> dict[str, Tensor]:
    """The tensors themselves, in the number format they were saved in or the one that ``dtypes`` has for their name.

    One at a time is read and cast, so that a large network is never held twice. On a CPU each is copied out of a mapping
    of its own: the pages of one that stayed open would be resident beside the copies until the last tensor.

    Raises:
        UserError: a file's bytes are not those of its folder's checksums.
    """
    for file in dict.fromkeys(entry.file for entry in entries.values()):
        check_file(file)
    dtypes, on_cpu = dtypes or {}, torch.device(device).type == "cpu"
    state: dict[str, Tensor] = {}
    for key, entry in entries.items():
        with _opened(entry.file, str(device)) as file:
            tensor = file.get_tensor(key)
            state[key] = tensor.to(dtypes.get(key) or tensor.dtype, copy=on_cpu)
            del tensor
    return state


def check_entries(
    expected: Mapping[str, Tensor], found: Mapping[str, Entry], folder: Path, what: str = "their config"
) -> None:
    """Raises: UserError naming the first few keys that are missing, unexpected, misshapen or no floating numbers."""
    faults = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "misshapen": [
            f"{key} ({list(found[key].shape)} for {list(tensor.shape)})"
            for key, tensor in expected.items()
            if key in found and found[key].shape != tuple(tensor.shape)
        ],
        "of a wrong dtype": [
            f"{key} ({entry.dtype}, expected {EXACT.get(expected[key].dtype, 'one of ' + ', '.join(FLOATS))})"
            for key, entry in found.items()
            if key in expected and not _is_dtype(entry.dtype, expected[key].dtype)
        ],
    }
    _raise_faults(faults, folder, what)


def _is_dtype(found: str, expected: torch.dtype) -> bool:
    return found == EXACT[expected] if expected in EXACT else found in FLOATS


def check_finite(state: Mapping[str, Tensor], folder: Path) -> None:
    """Raises: UserError naming the first few tensors that hold NaN or infinity."""
    _raise_faults(
        {
            "not finite": [
                k
                for k, v in state.items()
                if not torch.isfinite(v.float() if v.element_size() == 1 else v).all()
            ]
        },
        folder,
    )


def few(keys: list[str], shown: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    rest = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + rest


def _raise_faults(faults: dict[str, list[str]], folder: Path, fit: str = "their config") -> None:
    lines = [f"{what}: {few(keys)}" for what, keys in faults.items() if keys]
    if lines:
        raise UserError(f"the weights in {folder} do not fit {fit}; {'; '.join(lines)}")


def _opened(path: Path, device: str = "cpu") -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} is missing: the folder is incomplete; save or download the student again")
    try:
        return safe_open(path, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is broken or cut short ({reason}): save or download the student again"
        ) from error


def entries_of(path: Path) -> dict[str, Entry]:
    """All tensors of one file, from its header. Raises UserError when it is missing or broken."""
    with _opened(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}
        return {key: Entry(path, s.get_dtype(), tuple(s.get_shape())) for key, s in slices.items()}


def _read_index(path: Path) -> dict[str, Any]:
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path} maps no weights to files: save or download the student again")
    strange = [str(name) for name in weight_map.values() if not SHARD.fullmatch(str(name))]
    if strange:  # a name with slashes or dots would read files from elsewhere
        raise UserError(
            f"{path} names {json.dumps(strange[0])}, expected files such as model-00001-of-00002.safetensors beside it"
        )
    return index
