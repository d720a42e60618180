"""Pictures from elsewhere, such as photographs, with their captions: for growing, where no teacher draws so large.

A source is a folder, a WebDataset tar (a corpus of `l2p synthesize` is a folder of them), or `hub:USER/NAME[@REVISION][:FILES]`, a
data set of such files. Captions lie beside the pictures, in a text of the same name, or in a manifest, see
:mod:`l2p.picture_folder`; a picture without one has the empty caption. What is left out is counted in one line a source.

Only headers are read at first; a picture is decoded when it is asked for.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from l2p.corpus.sources import Source
from l2p.errors import UserError, warn
from l2p.files import PICTURES
from l2p.images import Pictures, decoding, open_picture, read_picture
from l2p.picture_folder import (
    CAPTIONS,
    MAX_CAPTION,
    caption_of,
    folder_captions,
    match_captions,
    natural_key,
    split_pictures,
    told_unknown,
)
from l2p.picture_manifest import MANIFESTS

TAR = ".tar"
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
            notes: list[str] = []
            found = list(_photos(source, notes))
            large = [photo for photo in found if _is_large(photo, height, width)]
            if not large:
                rest = f" ({', '.join(notes)})" if notes else ""
                raise UserError(
                    f"{source} has no picture of {width} x {height} pixels or more, and {len(found)} smaller ones{rest}: "
                    f"expected pictures such as .png, .jpg or .webp, or {TAR} files"
                )
            if len(found) > len(large):
                notes.insert(0, f"{len(found) - len(large)} smaller than {width} x {height}")
            bare = sum(not photo.caption for photo in large)
            if notes or bare:
                without = f", {bare} of them without a caption" if bare else ""
                rest = f"; left out: {', '.join(notes)}" if notes else ""
                warn(f"{source}: {len(large)} pictures are read{without}{rest}")
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


def _photos(source: str, notes: list[str]) -> Iterator[Photo]:
    """The pictures of a source; `notes` gets a phrase for each reason for which something is left out."""
    parsed = Source.parse(source)
    suffixes = (*PICTURES, TAR, *CAPTIONS, *MANIFESTS)
    files = sorted(parsed.locate(suffixes), key=lambda path: natural_key(path.as_posix()))
    folder = parsed.path if parsed.path is not None and parsed.path.is_dir() else _shared_folder(files)
    pictures, unknown = split_pictures(files)
    captions, rest = folder_captions(folder, files)
    for path in files:
        if path.suffix.lower() == TAR:
            yield from _in_tar(path, unknown, rest)
    for path in pictures:
        yield Photo(path, path.name, 0, path.stat().st_size, captions.get(path, ""))
    if parsed.path is not None and parsed.path.is_dir():
        read = set(files)
        others = [p for p in folder.rglob("*") if p.is_file() and p.name[0] != "." and p not in read]
        kinds = sorted({path.suffix.lower() or path.name for path in others})
        if others:
            rest.append(f"{len(others)} other files ({', '.join(kinds[:5])}{', ...' if kinds[5:] else ''})")
    notes += [*told_unknown(unknown), *rest]


def _shared_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in files]))


def _in_tar(path: Path, unknown: Counter[str], notes: list[str]) -> list[Photo]:
    """The pictures in a tar with their captions; counts those of formats that cannot be read."""
    members: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, bytes] = {}
    end, sparse = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as tar:  # never compressed: the offsets would be wrong
            for member in tar:
                if not member.isreg():
                    continue
                if member.issparse():  # its bytes do not lie in one piece
                    sparse += 1
                    continue
                if not 0 <= member.size <= end - member.offset_data:
                    raise EOFError(f"{member.name!r} has {member.size} bytes, the file {end}")
                name = Path(member.name).as_posix()  # "./a.png" is a.png
                if Path(name).suffix.lower() in CAPTIONS:
                    if member.size > MAX_CAPTION:
                        raise UserError(
                            f"{path} holds {name!r} of {member.size:,} bytes, too large for a caption"
                        )
                    texts[name] = tar.extractfile(member).read()
                else:
                    members[name] = member
    except UserError:
        raise
    except Exception as error:  # tarfile raises whatever odd numbers in extended headers lead it to
        raise UserError(f"{path} is no tar or is cut short ({error})") from None
    found, others = split_pictures(map(Path, members))
    unknown.update(others)
    names = [name.as_posix() for name in found]
    readers = {name: partial(caption_of, name, data, f"{name} in {path}") for name, data in texts.items()}
    captions, unused, differing = match_captions(names, readers)
    if sparse:
        notes.append(f"{sparse} sparse files in {path.name}")
    if unused:
        notes.append(f"{len(unused)} texts of no picture in {path.name}")
    if differing:
        notes.append(f"{differing} pictures with several texts that differ in {path.name}")
    photos = []
    for name in names:
        member = members[name]
        photos.append(Photo(path, name, member.offset_data, member.size, captions.get(name, "")))
    return photos


def _is_large(photo: Photo, height: int, width: int) -> bool:
    """Whether a picture has this size, as its header says. Raises UserError where it is none."""
    from PIL import Image

    for size in (HEADER, None):
        try:
            with open_picture(io.BytesIO(photo.read(size)), str(photo)) as image, decoding(str(photo)):
                found = image.height, image.width
                exif = Image.Exif()
                exif.load(image.info.get("exif", b""))  # image.getexif() would decode a PNG
                if exif.get(ORIENTATION) in TURNED:
                    found = found[::-1]
                return found[0] >= height and found[1] >= width
        except UserError:
            if size is None or photo.size <= size:
                raise
    raise AssertionError("the last try returns or raises")
