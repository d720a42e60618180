"""Pictures from elsewhere, such as photographs, with their captions: for growing, where no teacher draws so large.

A source is a folder, a WebDataset tar (a corpus of `l2p synthesize` is a folder of them), or `hub:USER/NAME[@REVISION][:FILES]`, a
data set of such files. Captions lie beside the pictures: `NAME.txt`, `NAME.json`, or a `metadata.jsonl` of `file_name` and a
column of :data:`~l2p.texts.COLUMNS`; a picture without one has the empty caption.

Only headers are read at first; a picture is decoded when it is asked for.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l2p.corpus.sources import Source
from l2p.errors import UserError
from l2p.files import PICTURES
from l2p.images import Pictures, read_picture
from l2p.texts import COLUMNS

TAR = ".tar"
METADATA = "metadata.jsonl"
TEXTS = (".txt", ".json", ".jsonl")
HEADER = 1 << 18  # bytes in which a picture's size is looked for
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: these swap height and width


@dataclass(frozen=True)
class Photo:
    """Where a picture lies: the bytes [offset, offset + size) of a file."""

    path: Path
    name: str
    offset: int
    size: int
    caption: str

    def read(self, size: int | None = None) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(min(size or self.size, self.size))

    def __str__(self) -> str:
        return str(self.path) if self.name == self.path.name else f"{self.name} in {self.path}"


class Photos:
    """Pictures of several sources, one after the other.

    Args:
        sources: see the top of this file.
        height, width: pictures smaller than this, in pixels, are left out: enlarged ones have no detail to learn from.

    Attributes:
        too_small: how many were left out.

    Raises:
        UserError: a source is not there, or holds no picture that is large enough.
    """

    def __init__(self, sources: Sequence[str], height: int, width: int) -> None:
        self.photos: list[Photo] = []
        self.too_small = 0
        for source in sources:
            found = list(_photos(source))
            large = [photo for photo in found if _is_large(photo, height, width)]
            if not large:
                raise UserError(
                    f"{source} has no picture of {width} x {height} pixels or more, and {len(found)} smaller ones: expected "
                    f"{', '.join(PICTURES)} or {TAR} files"
                )
            self.photos += large
            self.too_small += len(found) - len(large)

    def __len__(self) -> int:
        return len(self.photos)

    def crop(
        self, index: int, height: int, width: int, generator: torch.Generator | None = None
    ) -> tuple[Pictures, str]:
        """Picture `index`, shrunk until it just covers height x width, and a piece of that size: uint8 [H, W, 3]; its caption.

        Args:
            generator: draws where the piece lies; the middle without one.

        Raises:
            UserError: the picture is broken.
        """
        from PIL import Image

        photo = self.photos[index]
        picture = Image.fromarray(read_picture(io.BytesIO(photo.read()), str(photo)))
        scale = max(height / picture.height, width / picture.width)
        size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        where = torch.tensor([0.5, 0.5]) if generator is None else torch.rand(2, generator=generator)
        left, top = (
            int(share * (room + 1))
            for share, room in zip(where, (size[0] - width, size[1] - height), strict=True)
        )
        left, top = min(left, size[0] - width), min(top, size[1] - height)
        return np.asarray(picture.crop((left, top, left + width, top + height))), photo.caption


def _photos(source: str) -> Iterator[Photo]:
    files = Source.parse(source).locate((*PICTURES, TAR, *TEXTS))
    captions = _captions(files)
    for path in files:
        if path.suffix.lower() in PICTURES:
            yield Photo(path, path.name, 0, path.stat().st_size, captions.get(path, ""))
        elif path.suffix == TAR:
            yield from _in_tar(path)


def _captions(files: Sequence[Path]) -> dict[Path, str]:
    """Of the pictures among these files, from the texts among them."""
    found = {}
    for path in (path for path in files if path.name == METADATA):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = _json(line.encode(), path) if line.strip() else {}
            if isinstance(row.get("file_name"), str):
                found[path.parent / row["file_name"]] = _caption_of(row)
    texts = {path for path in files if path.suffix in (".txt", ".json")}
    for path in files:
        beside = [
            path.with_suffix(suffix) for suffix in (".txt", ".json") if path.with_suffix(suffix) in texts
        ]
        if path.suffix.lower() in PICTURES and beside:
            found[path] = _text(beside[0].name, beside[0].read_bytes(), beside[0])
    return found


def _in_tar(path: Path) -> Iterator[Photo]:
    """Members of a tar, those of one name up to its first dot being one sample."""
    pictures: list[tarfile.TarInfo] = []
    captions: dict[str, str] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                key, dot, suffix = _key(member.name)
                if not member.isfile():
                    continue
                if f".{suffix}" in PICTURES:
                    pictures.append(member)
                elif suffix in ("txt", "json") and (suffix == "txt" or key not in captions):
                    captions[key] = _text(member.name, tar.extractfile(member).read(), path)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path} is no tar or is cut short ({error})") from None
    for member in pictures:
        caption = captions.get(_key(member.name)[0], "")
        yield Photo(path, member.name, member.offset_data, member.size, caption)


def _key(name: str) -> tuple[str, str, str]:
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem, dot, suffix.lower()


def _text(name: str, data: bytes, path: Path) -> str:
    if name.endswith(".json"):
        return _caption_of(_json(data, path))
    return " ".join(data.decode("utf-8", errors="replace").split())


def _caption_of(row: dict[str, Any]) -> str:
    return next((row[name].strip() for name in COLUMNS if isinstance(row.get(name), str)), "")


def _json(data: bytes, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} holds a caption that is no JSON ({error})") from None
    return row if isinstance(row, dict) else {}


def _is_large(photo: Photo, height: int, width: int) -> bool:
    """Whether a picture has this size, as its header says. Raises UserError where it is none."""
    from PIL import Image

    for size in (HEADER, None):
        try:
            with Image.open(io.BytesIO(photo.read(size))) as image:
                found = image.height, image.width
                exif = Image.Exif()
                exif.load(image.info.get("exif", b""))  # image.getexif() would decode a PNG
                if exif.get(ORIENTATION) in TURNED:
                    found = found[::-1]
                return found[0] >= height and found[1] >= width
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if size is None:
                raise UserError(f"{photo} is no picture or is cut short: {error}") from None
    raise AssertionError("the last try returns or raises")
