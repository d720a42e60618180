"""Checkpoints of a run: one file of one process, or a folder into which each process wrote its shards.

Both hold the same dictionary. In a folder the tensors lie in torch's distributed format, each under its place in the
dictionary, and `rest.pt` has all else, with a mark where a tensor belongs. The format knows rows, not processes: any
number of them reads what any other number wrote.

    STAGE.shards/latest         name of the folder that counts: a step's folder is whole before it is named
    STAGE.shards/step-000120/   .metadata, *.distcp, rest.pt, sums-RANK.json (hashes of each process' files)
"""

from __future__ import annotations

import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor import zeros as sharded_zeros

from l2p import distributed
from l2p.artifacts import check_zip, hash_file, read_sealed, write_sealed
from l2p.errors import UserError
from l2p.files import atomic_path, write_text

LATEST, REST = "latest", "rest.pt"
MARK = "__tensor__"
STEP = re.compile(r"step-\d{1,12}")
_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
# All that torch's `.metadata`, a pickle, may name beside torch's dtypes: plain records.
READABLE = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_METADATA, n) for n in ("TensorStorageMetadata", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING")),
    *((_FILES, "_StorageInfo"), ("torch", "Size"), ("torch.serialization", "_get_layout")),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}


def save_sharded(state: dict[str, Any], folder: Path) -> None:
    """Write a nested dictionary, the shards of its tensors by those who hold them; all processes call it together."""
    import torch.distributed.checkpoint as dcp

    tensors: dict[str, Tensor] = {}

    def part(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        key = "/".join(map(str, path))
        tensors[key] = leaf
        return {MARK: key, "sharded": is_sharded(leaf)}

    rest = _map(state, part)
    step = folder / f"step-{int(state['global_step']):06d}"
    current = distributed.run_on_rank0(lambda: _named(folder))
    if current is not None and current.name == step.name:  # saved twice at one step: the same numbers again
        return
    distributed.run_on_rank0(
        lambda: shutil.rmtree(step, ignore_errors=True)
    )  # half a folder that a kill left
    dcp.save(tensors, checkpoint_id=step)
    own = {path.name: hash_file(path) for path in step.glob(f"__{distributed.rank()}_*")}
    write_sealed(step / f"sums-{distributed.rank()}.json", own)
    distributed.all_reduce_any(False)  # all have written before the folder is named

    def conclude() -> None:
        with atomic_path(step / REST) as partial:
            torch.save(rest, partial)
        write_text(folder / LATEST, step.name)
        for other in folder.glob("step-*"):
            if other != step:
                shutil.rmtree(other)

    distributed.run_on_rank0(conclude)


def load_checkpoint(
    path: Path, only: Sequence[str] | None = None, mesh: DeviceMesh | None = None
) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU.

    Args:
        only: how the places of wanted tensors begin, such as "state_dict/student."; None is all. The others are left out
            of a folder, whose reading costs; a file's are mapped into memory in any case.
        mesh: where given, what lies in shards is read as this process' shards on the mesh's device.

    Raises:
        UserError: a missing, broken or foreign file or folder.
    """
    try:
        if path.is_dir():
            checkpoint = _load_folder(path, only, mesh)
        elif path.is_file():
            check_zip(path, only="/data.pkl" if only == () else "")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            raise UserError(f"no checkpoint at {path}")
    except UserError:
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for a broken file
        reason = str(error).splitlines()[0].partition(" (1)")[0]
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}): delete it and run again, its stage starts over"
        ) from error
    if not isinstance(checkpoint, dict) or "l2p" not in checkpoint:
        raise UserError(f"{path} is no checkpoint of `l2p distill`")
    return checkpoint


def step_of(path: Path) -> int:
    """The step a checkpoint was kept at; -1 where there is none."""
    if path.is_dir():
        named = _named(path)
        return -1 if named is None else int(named.name.removeprefix("step-"))
    return load_checkpoint(path, only=())["l2p"]["step"] if path.is_file() else -1


def _named(folder: Path) -> Path | None:
    latest = folder / LATEST
    if not latest.is_file():
        return None
    with latest.open("rb") as file:
        name = file.read(100).decode(errors="replace").strip()
    if not STEP.fullmatch(name):
        raise UserError(f"{latest} names {name[:40]!r}, expected a folder beside it such as step-000120")
    return folder / name


class _Unpickler(pickle.Unpickler):
    """Reads `.metadata` without running what it may name."""

    def find_class(self, module: str, name: str) -> Any:
        found = getattr(torch, name, None) if module == "torch" else None
        if (module, name) in READABLE or isinstance(found, torch.dtype):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its .metadata names {module}.{name}, which no checkpoint of ours does")


def _reader(step: Path) -> Any:
    """torch's reader of a step's folder, that takes tensors alone, and those from the folder's own files.

    torch itself would unpickle `.metadata`, and every entry in it that is no tensor: READABLE knows none of those.
    Raises ValueError, UnpicklingError.
    """
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

    with (step / ".metadata").open("rb") as file:
        metadata = _Unpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise ValueError("its .metadata is no checkpoint's")
    if any(Path(info.relative_path).name != info.relative_path for info in metadata.storage_data.values()):
        raise ValueError("its .metadata names files of another folder")

    class Reader(FileSystemReader):
        def read_metadata(self, *_: Any, **__: Any) -> Metadata:
            return metadata

    return Reader(step)


def _load_folder(folder: Path, only: Sequence[str] | None, mesh: DeviceMesh | None) -> dict[str, Any]:
    import torch.distributed.checkpoint as dcp

    step = _named(folder)
    if step is None:
        raise UserError(f"no checkpoint at {folder}")
    check_zip(step / REST)
    rest = torch.load(step / REST, map_location="cpu", weights_only=True)
    alone = mesh is None or not dist.is_initialized()
    if only != ():
        _check_shards(step, alone)
    reader = _reader(step)
    known = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}

    def part(path: tuple[Any, ...], leaf: Any) -> Any:
        if not _is_mark(leaf):
            return leaf
        key = leaf[MARK]
        if only is not None and not key.startswith(tuple(only)):
            return None
        if key not in tensors:
            shape, dtype = known[key].size, known[key].properties.dtype
            if mesh is not None and leaf["sharded"]:
                tensors[key] = sharded_zeros(*shape, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])
            else:
                tensors[key] = torch.empty(shape, dtype=dtype)
        return tensors[key]

    state = _map(rest, part)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # alone on purpose
        dcp.load(tensors, storage_reader=reader, no_dist=alone)
    return state


def _check_shards(step: Path, alone: bool) -> None:
    """Compare the files of a step's folder with their hashes; together each process takes some. Raises ValueError in all."""
    sums: dict[str, str] = {}
    for path in sorted(step.glob("sums-*.json")):
        sums |= read_sealed(path, "delete the checkpoint and run again")
    some = sorted(sums) if alone else sorted(sums)[distributed.rank() :: distributed.size()]
    bad = [name for name in some if not (step / name).is_file() or hash_file(step / name) != sums[name]]
    if bool(bad) if alone else distributed.all_reduce_any(bool(bad)):
        raise ValueError(f"{bad[0] if bad else 'a shard'} has another checksum than it was written with")


def shard(value: Tensor, mesh: DeviceMesh) -> DTensor:
    """This process' rows of a whole tensor that all have; one that is sharded already stays as it is."""
    if is_sharded(value):
        return value
    start, stop = (first_row(value.shape, mesh, ahead) for ahead in (0, 1))
    local = value[start:stop].to(mesh.device_type, copy=True)
    return DTensor.from_local(
        local, mesh, [Shard(0)], run_check=False, shape=value.shape, stride=value.contiguous().stride()
    )


def first_row(shape: torch.Size, mesh: DeviceMesh, ahead: int = 0) -> int:
    """The first row that this process, or one `ahead` of it, has of a tensor divided by rows, as torch deals them out."""
    return min(shape[0], -(-shape[0] // mesh.size()) * (mesh.get_local_rank() + ahead))


def is_sharded(value: Any) -> bool:
    return isinstance(value, DTensor)


def _is_mark(value: Any) -> bool:
    return isinstance(value, dict) and MARK in value


def _map(value: Any, change: Callable[[tuple[Any, ...], Any], Any], path: tuple[Any, ...] = ()) -> Any:
    """A nested dictionary or list with every leaf changed; marks are leaves."""
    if isinstance(value, dict) and not _is_mark(value):
        return {key: _map(item, change, (*path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, change, (*path, i)) for i, item in enumerate(value))
    return change(path, value)
