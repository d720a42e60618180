"""What made each artefact, kept with it, and a checksum of its bytes: nothing is reused because of its name alone.

``made_from`` is a flat mapping of JSON values: hashes of inputs and weights, and every setting that shapes the result.

- A file or folder NAME has its record beside it, ``NAME.made.json``; a PNG holds it inside (:func:`l2p.images.save_png`).
- JSON documents of ours (stage markers, manifests, records) are sealed: they carry a hash of their own content.
- A checkpoint holds its settings, and every member of its zip file a CRC-32 (:func:`check_zip`).

Whoever reads asks :func:`reusable` (derived caches are made anew, with a line that says why) or :func:`differences`
(results that cost hours are refused, by the name of what differs).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p.errors import UserError
from l2p.files import atomic_path, read_json, remove, write_json
from l2p.terminal import say

if TYPE_CHECKING:
    from torch import Tensor

RECORD = ".made.json"
CHECKSUMS = "checksums.json"  # of a model's folder: l2p.checksums
SEAL = "checksum"  # of a document of ours: the hash of all else in it
UNKNOWN = "nothing says what it was made from"
MODEL_FILES = (".json", ".jinja", ".model", ".safetensors", ".txt")
SHOWN = 3  # differences that one line names
SAMPLE = 1 << 16  # bytes at each end of a file that `hash_files(sampled=True)` reads

_hashes: dict[tuple[str, int, int, int], str] = {}  # of this process: (path, bytes, mtime, inode) -> sha256


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to one, with dotted keys."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in flatten(branch, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples are lists, keys are texts."""
    return json.loads(json.dumps(value))


def digest(value: Any) -> str:
    """Sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two descriptions, in words: "seed: 0 there, 1 here"; empty where nothing does.

    A hash that one side does not know (None, or a record older than the key) is not compared.
    """
    found = []
    for key in {**there, **here}:
        old, new = there.get(key), here.get(key)
        if key.endswith("sha256") and None in (old, new):
            continue
        if old != new:
            found.append(f"{key}: {_short(old)} there, {_short(new)} here")
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def _short(value: Any) -> str:
    text = str(value)
    if len(text) == 64 and text.isalnum():
        return text[:12]
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---------------------------------------------------------------------------------------------------- hashes


def hash_file(path: str | Path) -> str:
    """Sha256 of a file's bytes; computed once in a process while size and time of change stay the same."""
    path = Path(path)
    stat = path.stat()
    key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key not in _hashes:
        found = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
        _hashes[key] = found.hexdigest()
    return _hashes[key]


def hash_files(files: Iterable[Path], root: Path, sampled: bool = False) -> str:
    """Sha256 of files' names below `root` and of their contents.

    Args:
        sampled: of each file read its size and both ends alone, for sets too large to read.
    """
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        if not sampled:
            found.update(hash_file(file).encode())
            continue
        with open(file, "rb") as opened:
            found.update(opened.read(SAMPLE))
            opened.seek(max(0, file.stat().st_size - SAMPLE))
            found.update(opened.read(SAMPLE))
    return found.hexdigest()


def hash_path(path: str | Path) -> str:
    """Sha256 of a file, or of all files in a folder but hidden ones and records."""
    path = Path(path)
    if path.is_file():
        return hash_file(path)
    return hash_files((file for file in path.rglob("*") if file.is_file() and _counts(file, path)), path)


def _counts(file: Path, root: Path) -> bool:
    names = file.relative_to(root).parts
    return not any(name.startswith(".") for name in names) and not file.name.endswith((RECORD, CHECKSUMS))


def hash_pipeline(folder: str | Path) -> str:
    """Sha256 of a diffusers pipeline's folder: its index, and the configs, texts and weights of the parts it names."""
    folder = Path(folder)
    index = read_json(folder / "model_index.json")
    parts = [folder / name for name in index if not name.startswith("_") and (folder / name).is_dir()]
    files = [file for part in parts for file in part.rglob("*") if file.is_file() and _counts(file, folder)]
    return hash_files([folder / "model_index.json", *files], folder)


def hash_model(folder: str | Path) -> str:
    """Sha256 of the configs, texts and weights in a model's folder (a student, a decoder, a head)."""
    folder = Path(folder)
    found = [file for file in folder.rglob("*") if file.suffix in MODEL_FILES and _counts(file, folder)]
    return hash_files(found, folder)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Sha256 of names, dtypes, shapes and every byte of tensors, wherever they lie."""
    import torch

    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        flat = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        found.update(flat.numpy())
    return found.hexdigest()


# --------------------------------------------------------------------------------------------------- records


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON mapping with a hash of its own content."""
    value = plain({key: item for key, item in value.items() if key != SEAL})
    return {**value, SEAL: digest(value)}


def unsealed(value: Any) -> dict[str, Any]:
    """What :func:`sealed` was given. Raises ValueError where the content is not what its hash says, or is no mapping."""
    if not isinstance(value, dict):
        raise ValueError("no mapping")
    value = dict(value)
    seal = value.pop(SEAL, None)
    if seal is not None and digest(value) != seal:
        raise ValueError("another checksum than its own")
    return value


def write_sealed(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON mapping with a hash of its own content, whole or not at all."""
    write_json(path, sealed(value))


def read_sealed(path: str | Path, advice: str) -> dict[str, Any]:
    """What :func:`write_sealed` wrote, without the hash; documents older than the seal pass.

    Args:
        advice: what to do about a damaged document, for the message.

    Raises:
        UserError: it is missing, is no JSON mapping, or its content is not what its hash says.
    """
    try:
        value = read_json(path)
    except UserError as error:
        if not Path(path).is_file():
            raise
        raise UserError(f"{error}: {advice}") from None
    try:
        return unsealed(value)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {advice}") from None


def record_of(path: str | Path) -> Path:
    """Where the record of an artefact lies."""
    path = Path(path)
    return path.with_name(path.name + RECORD)


def write_record(path: str | Path, made_from: Mapping[str, Any]) -> None:
    """Note beside a whole file or folder what it was made from, and its hash."""
    write_sealed(record_of(path), {"made_from": plain(made_from), "content": hash_path(path)})


@contextmanager
def recorded(path: str | Path, made_from: Mapping[str, Any]) -> Iterator[Path]:
    """As :func:`~l2p.files.atomic_path`, with a record of what the artefact was made from."""
    remove(record_of(path))  # from here to the new record, a kill leaves an artefact that is made anew
    with atomic_path(path) as partial:
        yield partial
    write_record(path, made_from)


def why_not(path: str | Path, made_from: Mapping[str, Any]) -> str | None:
    """Why an artefact that is there may not be reused for `made_from`; None where it may."""
    if Path(path).suffix == ".png":
        return _why_not_png(Path(path), made_from)
    if not record_of(path).is_file():
        return UNKNOWN
    try:
        record = read_sealed(record_of(path), "")
        there, content = record["made_from"], record["content"]
    except (UserError, KeyError, TypeError):
        return "its record is damaged"
    return differences(there, plain(made_from)) or (
        "its bytes are damaged" if hash_path(path) != content else None
    )


def _why_not_png(path: Path, made_from: Mapping[str, Any]) -> str | None:
    from l2p.images import made_from_of

    try:
        there = made_from_of(path)
    except UserError:
        return "its bytes are damaged"
    return UNKNOWN if there is None else differences(there, plain(made_from)) or None


def reusable(path: str | Path, made_from: Mapping[str, Any]) -> bool:
    """Whether an artefact is there, whole, and was made from just this; one line says why one that is there is not."""
    if not Path(path).exists():
        return False
    if (reason := why_not(path, made_from)) is not None:
        say(f"{path} is made anew ({reason})")
    return reason is None


# ----------------------------------------------------------------------------------------------- checkpoints


def check_zip(path: str | Path, only: str = "") -> None:
    """Read a file that `torch.save` wrote against the CRC-32 of each member, and its header against the directory.

    Args:
        only: how the names of members that are read end; "" reads all.

    Raises:
        ValueError: a member's bytes are not those that were written.
    """
    try:
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                if name.endswith(only):
                    with file.open(name) as member:  # compares the header's name with the directory's
                        while member.read(1 << 20):
                            pass
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise ValueError(f"damaged: {error}") from error
