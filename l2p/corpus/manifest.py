"""What a corpus' manifest says: the settings that shaped its samples, and every shard with its hash."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2p.artifacts import differences, flatten, read_sealed
from l2p.corpus.samples import OLD_PARTS, PARTS
from l2p.errors import UserError

FORMATS = (1, 2)  # 1 had no "parts": they were OLD_PARTS
MANIFEST = "manifest.json"
NOT_WRITTEN = {"noise_generator": "mt19937"}  # by the first versions, which had no other
SHARD = re.compile(r"shard-\d{6,12}\.tar")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a corpus, joined from those of all its processes.

    Returns:
        ``format``, ``settings``, ``parts`` (suffixes of a sample's members) and ``shards`` of name, first, count, bytes
        and sha256; where a scorer dropped pictures, a shard also has ``dropped`` (index and score of each).

    Raises:
        UserError: no manifest, or one that this version does not read.
    """
    folder = Path(folder)
    paths = [folder / MANIFEST, *sorted(folder.glob("manifest-*.json"))]
    found = [manifest for path in paths if (manifest := _read(path)) is not None]
    if not found:
        raise UserError(f"{folder} is no corpus: {MANIFEST} is missing; make it with `l2p synthesize`")
    for other in found[1:]:
        check_same(folder, found[0], other)
    shards: dict[str, dict[str, Any]] = {}
    for shard in (shard for manifest in found for shard in manifest["shards"]):
        known = shards.get(shard["name"], shard)
        if known != shard:  # drawn again by another process: true is what the file says
            path = folder / shard["name"]
            known = shard if path.is_file() and path.stat().st_size == shard["bytes"] else known
        shards[shard["name"]] = known
    return found[0] | {"shards": [shards[name] for name in sorted(shards)]}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        manifest = read_sealed(path, f"delete the folder {path.parent} and run again, which draws it anew")
    except UserError:
        if path.is_file():
            raise
        return None  # there is none, or another process has just joined it
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version not in FORMATS:
        raise UserError(
            f"{path} has corpus format {version!r}, this version reads {FORMATS[0]} and {FORMATS[1]}: "
            "delete the folder to redraw it"
        )
    shards, parts = manifest.get("shards"), manifest.get("parts", list(OLD_PARTS))
    if not isinstance(manifest.get("settings"), dict) or not isinstance(shards, list):
        raise UserError(
            f"{path} is broken: settings and shards are missing; restore the file or redraw the corpus"
        )
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise UserError(
            f"{path} is broken: parts is {str(parts)[:80]!r}, expected suffixes such as {PARTS[0]}"
        )
    for shard in shards:
        _check_shard(path, shard)
    settings = {
        key: value for key, value in manifest["settings"].items() if key != "weights"
    }  # of older ones
    settings = NOT_WRITTEN | settings
    if version == 1:
        settings = {"solver": "teacher"} | settings  # the first ones knew no other
    return manifest | {"settings": settings, "parts": parts}


def _check_shard(path: Path, shard: Any) -> None:
    """Raises UserError for an entry that leads out of the folder, or counts more samples than its bytes can hold."""
    entry = shard if isinstance(shard, dict) else {}
    name, numbers = entry.get("name"), [entry.get(key) for key in ("first", "count", "bytes")]
    dropped = entry.get("dropped", [])
    sound = isinstance(name, str) and SHARD.fullmatch(name) and isinstance(dropped, list)
    sound = sound and all(isinstance(d, list) and len(d) == 2 and type(d[0]) is int for d in dropped)
    sound = sound and all(type(number) is int and 0 <= number < 2**53 for number in numbers)
    file = path.parent / str(name)
    if sound and file.is_file():
        numbers[2] = min(numbers[2], file.stat().st_size)
    if not sound or numbers[1] * 512 > numbers[2]:  # a member of a tar has a block at least
        raise UserError(f"{path} is broken: it describes a shard that cannot be, {str(shard)[:80]!r}")


def check_same(folder: Path, made: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises UserError, naming the first difference, where two manifests tell of different samples."""
    old, new = (NOT_WRITTEN | side["settings"] | {"parts": side["parts"]} for side in (made, wanted))
    if old["noise_generator"] != new["noise_generator"]:
        raise UserError(
            f"the noise of the pairs in {folder} is by {old['noise_generator']}, this run's by {new['noise_generator']}: set "
            f"corpus.noise_generator={old['noise_generator']}, delete the folder or choose another corpus.path"
        )
    if changed := differences(flatten(old), flatten(new)):
        raise UserError(
            f"the corpus in {folder} was made with other settings ({changed}): delete the folder or choose another "
            "corpus.path"
        )


def manifest_of(
    settings: dict[str, Any], parts: Sequence[str], shards: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A manifest as it is written; a corpus of format 1 stays one."""
    if list(parts) == list(OLD_PARTS):
        return {"format": 1, "settings": settings, "shards": list(shards)}
    return {"format": 2, "settings": settings, "parts": list(parts), "shards": list(shards)}


def drawn(shard: dict[str, Any]) -> int:
    """Samples that were drawn for a shard: those in it and those that a scorer dropped."""
    return shard["count"] + len(shard.get("dropped", ()))


def indices_of(shard: dict[str, Any]) -> list[int]:
    """The numbers of a shard's samples."""
    dropped = {index for index, _ in shard.get("dropped", ())}
    return [i for i in range(shard["first"], shard["first"] + drawn(shard)) if i not in dropped]


def missing_file(folder: Path, num_samples: int) -> Path | None:
    """The first file that a whole corpus of so many samples lacks; None where it lacks none.

    Raises:
        UserError: the manifest is damaged.
    """
    if not any(folder.glob("manifest*.json")):
        return folder / MANIFEST
    total = 0
    for shard in read_manifest(folder)["shards"]:
        path = folder / shard["name"]
        if shard["first"] != total or not path.is_file() or path.stat().st_size != shard["bytes"]:
            return path
        total += drawn(shard)
    return None if total >= num_samples else folder / MANIFEST
