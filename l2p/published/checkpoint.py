"""A weights file of others, looked at before it is read: safetensors, or a PyTorch file without code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2p.errors import UserError
from l2p.hub.client import HubName, download
from l2p.students import weights

SUFFIXES = (".safetensors", ".pth", ".pt")
NAMES = {kind: name for name, kind in weights.FLOATS.items()}  # as safetensors calls them
CARD = "README.md"


@dataclass(frozen=True)
class Source:
    """Where a file comes from.

    Attributes:
        path: the file here.
        file: its name in the repository, or its own.
        name: the repository on the Hub; None for a file that was here already.
        revision: the commit of the repository.
    """

    path: Path
    file: str
    name: str | None = None
    revision: str | None = None


def fetch(source: str, files: Mapping[str, Mapping[str, str]], endpoint: str | None = None) -> Source:
    """A local file, or one of the Hub named ``USER/NAME[@REVISION]:FILE``.

    Args:
        files: of a repository, what may stand for a FILE: variant to file.

    Raises:
        UserError: no such file, no such name, or no way to the Hub.
    """
    path = Path(source)
    repo, colon, file = source.partition(":")
    name = HubName.parse(repo) if colon else None
    if path.is_file() or name is None:
        if path.is_dir():
            raise UserError(f"{path} is a folder, expected one of its files: {', '.join(SUFFIXES)}")
        if not path.is_file():
            raise UserError(
                f"no file {source!r}: expected a file, or USER/NAME:FILE of the Hub such as "
                "zhen-nan/L2P:model-1k-merge.safetensors (l2p import --list)"
            )
        return Source(path, path.name)
    file = files.get(name.repo, {}).get(file, file)
    odd = set("*?[") & set(file) or ".." in file.split("/")  # a pattern would fetch more than one file
    if odd or not file.endswith(SUFFIXES):
        known = ", ".join(files.get(name.repo, {})) or "a file that ends in " + ", ".join(SUFFIXES)
        raise UserError(f"{name.repo} has no weights {file!r}: expected {known}")
    folder = download(name, [file, CARD], endpoint)
    if not (folder / file).is_file():
        raise UserError(f"{name} holds no file {file}: look it up on the Hub")
    return Source(folder / file, file, name.repo, folder.name)


class Checkpoint:
    """The tensors of one file by name; nothing is in memory before it is asked for.

    Args:
        path: ends in .safetensors, .pth or .pt.
        prefix: what all names begin with, cut off; a file where none does is taken as it is.

    Attributes:
        entries: dtype and shape by name.

    Raises:
        UserError: a file that is missing, broken, cut short, holds code, or holds anything but tensors.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path = path
        self._tensors: dict[str, Tensor] | None = None
        if path.suffix == ".safetensors":
            found = weights.entries_of(path)
        else:
            self._tensors = _unpickled(path)
            found = {
                name: weights.Entry(path, NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
                for name, tensor in self._tensors.items()
            }
        cut = len(prefix) if found and all(name.startswith(prefix) for name in found) else 0
        self._own = {name[cut:]: name for name in found}
        self.entries = {name[cut:]: entry for name, entry in found.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype of the file. Raises UserError when it holds NaN or infinity."""
        if self._tensors is not None:
            tensor = self._tensors[self._own[name]].clone()
        else:
            entry = self.entries[name]
            tensor = weights.read_weights({self._own[name]: entry}, "cpu")[self._own[name]]
        if not torch.isfinite(tensor).all():
            raise UserError(f"{self.path} is no good: {name} holds NaN or infinity")
        return tensor


def _unpickled(path: Path) -> dict[str, Tensor]:
    # A zip is mapped, not read; older files are no zip. Neither may hold anything that runs.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch muses about odd pickles before it refuses them
            state: Any = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError:  # torch's own words advise to run it
        raise UserError(
            f"{path} is refused: it holds more than tensors, or is no PyTorch file, and nothing in it is run"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path} is broken or cut short ({reason}): download it again") from None
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds a {type(state).__name__}, expected tensors by name")
    odd = [
        str(name)
        for name, value in state.items()
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided
    ]
    if odd:
        raise UserError(f"{path} holds more than tensors: {weights.few(odd)}; expected tensors by name")
    return state
