"""Tar shards in webdataset's layout, written so that a kill at any moment loses and doubles nothing.

- Sample ``i`` lies in shard ``i // shard_size`` as ``00000000.png``, ``.latent.safetensors`` and ``.json``
  (:mod:`~l2p.corpus.samples`), and tar headers carry no clock and no user: the same samples give the same bytes.
- A shard is written beside its final name, synced, and renamed; the manifest follows. A kill between the two leaves a
  whole shard that the manifest does not know: the next run checks it and adopts it.
- The manifest holds every setting that shapes a sample. A folder made with others is refused, never mixed.
- Several processes, of which ``share`` numbers this one, take every so many-th shard each. They never write the same
  file: the first keeps ``manifest.json``, the others ``manifest-RANK.json`` beside it, all are read as one, and the
  last to finish joins them.
"""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from l2p.artifacts import hash_file, plain, write_sealed
from l2p.corpus.manifest import MANIFEST, check_same, drawn, manifest_of, read_manifest
from l2p.corpus.samples import OLD_PARTS, PARTS, Sample
from l2p.errors import UserError
from l2p.files import atomic_path, check_writable

_BLOCK = tarfile.BLOCKSIZE
_SHARDS = "shard-" + "[0-9]" * 6 + ".tar"


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def scan(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and bytes of every member of a shard, from its headers alone.

    Raises:
        UserError: the file is truncated or is no tar.
    """
    try:
        end = path.stat().st_size
        with open(path, "rb") as file:
            offset = 0
            while True:
                header = file.read(_BLOCK)
                if header == bytes(_BLOCK):
                    return
                info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
                offset += _BLOCK
                if not 0 <= info.size <= end - offset:
                    raise tarfile.HeaderError("a member is cut off")
                yield info.name, offset, info.size
                offset += -(-info.size // _BLOCK) * _BLOCK
                file.seek(offset)
    except (OSError, tarfile.HeaderError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} is truncated or corrupt ({error}): delete this file and run again, it alone is redrawn"
        ) from None


class ShardWriter:
    """Writes the shards of one corpus; knows which are still missing.

    Args:
        settings: everything that shapes a sample, JSON values only; must hold ``shard_size``.
        num_samples: samples of the whole corpus; a corpus may grow, its last short shard is then drawn again.
        parts: suffixes of a sample's members; a corpus of format 1 goes on in its own.
        share: number of this process and how many there are.

    Raises:
        UserError: the folder holds a corpus made with other settings, or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: dict[str, Any],
        num_samples: int,
        parts: Sequence[str] = PARTS,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.folder = Path(folder)
        self.settings = plain(settings)
        self.shard_size = self.settings["shard_size"]
        self.num_samples, self.parts = num_samples, list(parts)
        self.rank, self.world_size = share
        assert num_samples >= 1 and self.shard_size >= 1
        check_writable(self.folder)
        self._shards: dict[str, dict[str, Any]] = self._known()
        self._recover()
        self._write_manifest()

    def _is_mine(self, name: str) -> bool:
        """Whether this process writes the shard of that name."""
        digits = name.removeprefix("shard-").removesuffix(".tar")
        return digits.isdecimal() and int(digits) % self.world_size == self.rank

    def _known(self) -> dict[str, dict[str, Any]]:
        drawn_before = any(
            self.folder.glob(_SHARDS)
        )  # asked first: a process writes its manifest before its shards
        if not any(self.folder.glob("manifest*.json")):
            if drawn_before:
                raise UserError(
                    f"{self.folder} holds shards but no {MANIFEST}: delete it or choose another corpus.path"
                )
            return {}
        manifest = read_manifest(self.folder)
        if manifest["parts"] == list(OLD_PARTS) and self.parts == list(PARTS):
            self.parts = list(OLD_PARTS)
        check_same(self.folder, manifest, {"settings": self.settings, "parts": self.parts})
        return {shard["name"]: shard for shard in manifest["shards"]}

    def _recover(self) -> None:
        """Keep whole shards, adopt those the manifest missed, drop the rest."""
        for path in sorted(self.folder.glob(_SHARDS)):
            if not self._is_mine(path.name):
                continue
            known = self._shards.get(path.name)
            if known is None or known["bytes"] != path.stat().st_size:
                self._shards.pop(path.name, None)
                entry = self._inspect(path)
                if entry is None:
                    path.unlink()
                else:
                    self._shards[path.name] = entry
        self._shards = {name: shard for name, shard in self._shards.items() if (self.folder / name).is_file()}

    def _inspect(self, path: Path) -> dict[str, Any] | None:
        """The manifest entry of a shard found on disk, or None when it is not whole, or may be so (a scorer was there)."""
        try:
            names = [name for name, _, _ in scan(path)]
        except UserError:
            return None
        first, count = int(path.stem.removeprefix("shard-")) * self.shard_size, len(names) // len(self.parts)
        if not count or names != [f"{first + i:08d}{part}" for i in range(count) for part in self.parts]:
            return None
        return _entry(path, path.name, range(first, first + count), [])

    def missing(self) -> list[range]:
        """The samples that this process still has to draw, one range a shard."""
        return [
            wanted
            for wanted in self._ranges()
            if (wanted.start // self.shard_size) % self.world_size == self.rank and not self._has(wanted)
        ]

    def _ranges(self) -> list[range]:
        starts = range(0, self.num_samples, self.shard_size)
        return [range(first, min(first + self.shard_size, self.num_samples)) for first in starts]

    def _has(self, wanted: range) -> bool:
        shard = self._shards.get(shard_name(wanted.start // self.shard_size))
        return shard is not None and drawn(shard) >= len(wanted)

    def write(
        self, indices: range, samples: Sequence[Sample], dropped: Sequence[tuple[int, float]] = ()
    ) -> None:
        """Write one range of :meth:`missing` as a shard.

        Args:
            samples: of that range, in order, without those that were dropped.
            dropped: index and score of each picture that its scorer refused.

        Raises:
            UserError: the disk is full; what was written before is kept.
        """
        path = self.folder / shard_name(indices.start // self.shard_size)
        try:
            with atomic_path(path) as partial:
                with tarfile.open(partial, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    for sample in samples:
                        _add(tar, sample, self.parts)
                entry = _entry(partial, path.name, indices, dropped)
            self._shards[path.name] = entry
            self._write_manifest()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"no space left for {path}: free some and run again, whole shards are kept"
                ) from error
            raise

    def finish(self) -> bool:
        """Join the manifests once all processes are done; whether they are.

        Who sees all shards writes; two who see them at once write the same.
        """
        self._shards = {shard["name"]: shard for shard in read_manifest(self.folder)["shards"]} | self._shards
        if not all(self._has(wanted) for wanted in self._ranges()):
            return False
        own = self.folder / f".manifest-{self.rank}.json"  # a name that no other process writes or removes
        write_sealed(own, self._manifest(self._shards))
        os.replace(own, self.folder / MANIFEST)
        for other in self.folder.glob("manifest-*.json"):
            other.unlink(missing_ok=True)
        return True

    def _write_manifest(self) -> None:
        if self.rank == 0:
            return write_sealed(self.folder / MANIFEST, self._manifest(self._shards))
        mine = {name: shard for name, shard in self._shards.items() if self._is_mine(name)}
        write_sealed(self.folder / f"manifest-{self.rank}.json", self._manifest(mine))

    def _manifest(self, shards: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return manifest_of(self.settings, self.parts, [shards[name] for name in sorted(shards)])


def _add(tar: tarfile.TarFile, sample: Sample, parts: Sequence[str]) -> None:
    for part, data in sample.members(parts).items():
        info = tarfile.TarInfo(f"{sample.index:08d}{part}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _entry(path: Path, name: str, indices: range, dropped: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """What the manifest says of the shard in this file."""
    entry = {
        "name": name,
        "first": indices.start,
        "count": len(indices) - len(dropped),
        "bytes": path.stat().st_size,
        "sha256": hash_file(path),
    }
    return entry | ({"dropped": [[i, score] for i, score in dropped]} if dropped else {})
