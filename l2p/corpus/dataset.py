"""Reads a corpus at random, straight out of its tar shards."""

from __future__ import annotations

import io
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from l2p.corpus.shards import PARTS, read_manifest, scan
from l2p.errors import UserError

_MAX_OPEN = 64  # file handles a worker keeps, well below the 256 that some systems allow


class CorpusDataset(Dataset):
    """Map-style dataset: sample ``i`` is the ``i``-th pair the teacher drew, in whatever order it is asked for.

    The headers of every shard are read once, when the dataset is made; after that a sample is three reads at known
    offsets. Handles are opened by the process that reads, so workers never share one.

    Args:
        folder: of a corpus, complete or still growing.
        num_samples: use the first so many pairs; None takes all.

    Raises:
        UserError: no corpus there, fewer pairs than asked for, or a shard that is missing, truncated or corrupt.
    """

    def __init__(self, folder: str | Path, num_samples: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._paths: list[Path] = []
        self._starts: list[int] = []  # index of the first sample of each shard
        self._offsets: list[np.ndarray] = []  # int64 [count, 3 parts, (offset, bytes)]
        total = 0
        for shard in self.manifest["shards"]:
            path = self.folder / shard["name"]
            if shard["first"] != total:
                raise UserError(
                    f"{self.folder} lacks the samples from {total}: run `l2p distill` again to draw them"
                )
            self._paths.append(path)
            self._starts.append(total)
            self._offsets.append(_index(path, shard))
            total += shard["count"]
        if total < (num_samples or 1):
            raise UserError(
                f"{self.folder} holds {total} pairs, {num_samples or 1} were asked for: draw more of them"
            )
        self._length = num_samples or total
        self._handles: OrderedDict[int, int] = OrderedDict()
        self._owner = os.getpid()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        """Pair ``index``: ``image`` uint8 numpy [H, W, 3], ``latent`` float32 tensor [c, h, w], ``seed``, ``prompt``.

        Raises:
            UserError: the sample's bytes are corrupt; the line names the file.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"corpus index {index} is out of range: it holds {len(self)} pairs")
        index %= len(self)
        shard = bisect_right(self._starts, index) - 1
        path = self._paths[shard]
        try:
            picture, latent, facts = (
                self._read(shard, int(offset), int(size))
                for offset, size in self._offsets[shard][index - self._starts[shard]]
            )
            image = np.array(Image.open(io.BytesIO(picture), formats=["PNG"]).convert("RGB"))
            values = np.load(io.BytesIO(latent), allow_pickle=False)
            facts = json.loads(facts)
            if facts["index"] != index or not np.isfinite(values).all():
                raise ValueError("the sample is not what its name says")
            return {
                "image": image,
                "latent": torch.from_numpy(values.astype(np.float32)),
                "seed": facts["seed"],
                "prompt": facts["prompt"],
            }
        except (OSError, SyntaxError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(
                f"sample {index} in {path} is corrupt ({error}): delete this file and run again, it alone is redrawn"
            ) from error

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


def _index(path: Path, shard: dict) -> np.ndarray:
    """Offsets and sizes, int64 [count, 3, 2], of a shard's members."""
    if not path.is_file() or path.stat().st_size != shard["bytes"]:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
        raise UserError(
            f"{path} is truncated or missing ({shard['bytes']} bytes expected, {found}): "
            "delete this file and run again, it alone is redrawn"
        )
    members = list(scan(path))
    names = [name for name, _, _ in members]
    if names != [f"{shard['first'] + i:08d}{part}" for i in range(shard["count"]) for part in PARTS]:
        raise UserError(f"{path} does not hold the samples its manifest says: delete this file and run again")
    return np.array([pair[1:] for pair in members], np.int64).reshape(shard["count"], len(PARTS), 2)
