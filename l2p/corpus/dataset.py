"""Reads a corpus at random, straight out of its tar shards."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from l2p.artifacts import hash_file
from l2p.corpus.manifest import drawn, indices_of, read_manifest
from l2p.corpus.samples import (
    FACTS,
    IMAGES,
    LATENT,
    OLD_LATENT,
    decode_facts,
    decode_image,
    decode_tensors,
)
from l2p.corpus.shards import scan
from l2p.errors import UserError

_MAX_OPEN = 64  # file handles a worker keeps, well below the 256 that some systems allow


class CorpusDataset(Dataset):
    """Map-style dataset: sample ``i`` is the ``i``-th pair the teacher drew, in whatever order it is asked for.

    The headers of every shard are read once, when the dataset is made; after that a sample is three reads at known
    offsets. Handles are opened by the process that reads, so workers never share one. Pictures that a scorer dropped
    are not counted: the ``i``-th pair is then the ``i``-th that was kept.

    Args:
        folder: of a corpus, complete or still growing.
        num_samples: use the first so many that were drawn; None takes all.

    Raises:
        UserError: no corpus there, fewer pairs than asked for, or a shard that is missing, truncated or
            corrupt.
    """

    def __init__(self, folder: str | Path, num_samples: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.parts: list[str] = self.manifest["parts"]
        self._paths: list[Path] = []
        self._starts: list[int] = []  # place of the first sample of each shard
        self._offsets: list[np.ndarray] = []  # int64 [count, parts, (offset, bytes)]
        self.indices: list[int] = []  # what the samples are called
        total = 0
        for shard in self.manifest["shards"]:
            path = self.folder / shard["name"]
            if shard["first"] != total:
                raise UserError(
                    f"{self.folder} lacks the samples from {total}: run the same command again to draw them"
                )
            self._paths.append(path)
            self._starts.append(len(self.indices))
            self._offsets.append(_index(path, shard, self.parts))
            self.indices += indices_of(shard)
            total += drawn(shard)
        if total < (num_samples or 1):
            raise UserError(
                f"{self.folder} holds {total} pairs, {num_samples or 1} were asked for: draw more of them"
            )
        self._length = bisect_left(self.indices, num_samples or total)
        if not self._length:
            raise UserError(f"{self.folder} holds no pair: its scorer dropped all of them")
        self._handles: OrderedDict[int, int] = OrderedDict()
        self._owner = os.getpid()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        """Pair ``index``: ``image`` uint8 numpy [H, W, 3], ``latent`` float32 tensor [c, h, w], ``seed``, ``prompt``.

        Without ``latent`` where the corpus keeps none.

        Raises:
            UserError: the sample's bytes are corrupt; the line names the file.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"corpus index {index} is out of range: it holds {len(self)} pairs")
        index %= len(self)
        shard = bisect_right(self._starts, index) - 1
        path = self._paths[shard]
        found: dict = {}
        try:
            places = zip(self.parts, self._offsets[shard][index - self._starts[shard]], strict=True)
            members = {part: self._read(shard, int(offset), int(size)) for part, (offset, size) in places}
            facts = decode_facts(members)
            if facts["index"] != self.indices[index]:
                raise ValueError("the sample is not what its name says")
            found |= {"seed": facts["seed"], "prompt": facts["prompt"]}
            for part, data in members.items():
                if part in IMAGES:
                    found["image"] = decode_image(data)
                elif part != FACTS:
                    found |= {name: torch.from_numpy(v) for name, v in decode_tensors(data, part).items()}
            return found
        except (OSError, SyntaxError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(
                f"sample {self.indices[index]} in {path} is corrupt ({error}): delete this file and run again, it alone "
                "is redrawn"
            ) from error

    @property
    def has_latents(self) -> bool:
        return LATENT in self.parts or OLD_LATENT in self.parts

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if self._owner != os.getpid():  # after a fork: the parent's handles stay the parent's
            self._handles, self._owner = OrderedDict(), os.getpid()
        if shard not in self._handles:
            if len(self._handles) >= _MAX_OPEN:
                os.close(self._handles.popitem(last=False)[1])
            self._handles[shard] = os.open(self._paths[shard], os.O_RDONLY)
        self._handles.move_to_end(shard)
        data = os.pread(self._handles[shard], size, offset)
        if len(data) != size:
            raise EOFError(f"{size} bytes expected at {offset}, {len(data)} found")
        return data

    def close(self) -> None:
        """Close this process's file handles; the next read opens them again."""
        if self._owner == os.getpid():
            for handle in self._handles.values():
                os.close(handle)
        self._handles = OrderedDict()

    def __del__(self) -> None:
        if hasattr(self, "_handles"):
            self.close()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_handles": OrderedDict(), "_owner": -1}


def verify(folder: str | Path) -> dict[str, int]:
    """Read a whole corpus against its manifest; returns its numbers of pictures, shards and bytes.

    Raises:
        UserError: a sample is missing, doubled or named wrongly, or a shard's bytes are not those that were written.
    """
    dataset = CorpusDataset(folder)
    shards = dataset.manifest["shards"]
    for shard in shards:
        path = Path(folder) / shard["name"]
        if hash_file(path) != shard["sha256"]:
            raise UserError(f"{path} has another hash than its manifest says: delete this file and run again")
    return {"pictures": len(dataset), "shards": len(shards), "bytes": sum(shard["bytes"] for shard in shards)}


def _index(path: Path, shard: dict, parts: list[str]) -> np.ndarray:
    """Offsets and sizes, int64 [count, parts, 2], of a shard's members."""
    if not path.is_file() or path.stat().st_size != shard["bytes"]:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
        raise UserError(
            f"{path} is truncated or missing ({shard['bytes']} bytes expected, {found}): "
            "delete this file and run again, it alone is redrawn"
        )
    members = list(scan(path))
    names = [name for name, _, _ in members]
    if names != [f"{index:08d}{part}" for index in indices_of(shard) for part in parts]:
        raise UserError(f"{path} does not hold the samples its manifest says: delete this file and run again")
    return np.array([pair[1:] for pair in members], np.int64).reshape(shard["count"], len(parts), 2)
