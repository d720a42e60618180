"""Folders of pictures: which files are read, in which order, and what a manifest or a text beside a picture says of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from l2p.artifacts import digest, hash_files
from l2p.errors import UserError, warn
from l2p.files import PICTURES, PathLike, leads_out, read_bytes
from l2p.images import PLUGINS, readable_suffixes
from l2p.picture_manifest import MANIFESTS, listed, read_manifests
from l2p.texts import COLUMNS, decode_text

CAPTIONS = (".txt", ".caption", ".json")  # of a picture's name, with or without its own suffix, in this order
MAX_CAPTION = 2**20  # bytes


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts names as people count: 1, 2, 10."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def split_pictures(paths: Iterable[Path]) -> tuple[list[Path], Counter[str]]:
    """The pictures among files that can be read, and how many cannot, by suffix. Hidden files are no pictures."""
    found, unknown = [], Counter()
    for path in paths:
        suffix = path.suffix.lower()
        if path.name.startswith(".") or suffix not in PICTURES:
            continue
        if suffix in readable_suffixes():
            found.append(path)
        else:
            unknown[suffix] += 1
    return found, unknown


def told_unknown(unknown: Mapping[str, int]) -> list[str]:
    """A phrase for each format that cannot be read here."""
    return [
        f"{count} {suffix} (which Pillow cannot read here{f': {PLUGINS[suffix]}' if suffix in PLUGINS else ''})"
        for suffix, count in sorted(unknown.items())
    ]


def split_linked(files: Sequence[Path], folder: Path) -> tuple[list[Path], list[str]]:
    """Files without those texts and manifests that are links out of their folder, which may be private files of this machine;
    and a phrase about these. Pictures may lie elsewhere: what is no picture is not read."""
    texts = (path for path in files if path.suffix.lower() in CAPTIONS or path.name in MANIFESTS)
    out = {path for path in texts if leads_out(path, folder)}
    phrases = [f"{len(out)} texts that are links out of the folder ({listed(sorted(p.name for p in out))})"]
    return [path for path in files if path not in out], phrases if out else []


@dataclass(frozen=True)
class Picture:
    """A picture, and what its folder's manifest says of it."""

    path: Path
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a folder in natural order.

    Attributes:
        has_manifest: whether the folder says of its pictures what they show.
        left_out: phrases about pictures that are not among them.
    """

    path: Path
    pictures: list[Picture]
    has_manifest: bool = False
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: PathLike) -> PictureFolder:
        """List a folder; what is left out is told in one line.

        Raises:
            UserError: a manifest that cannot be read, or two of them.
        """
        folder = Path(folder)
        files = sorted(
            (path for path in folder.glob("*") if path.is_file()), key=lambda p: natural_key(p.name)
        )
        files, linked = split_linked(files, folder)
        found, unknown = split_pictures(files)
        said = read_manifests(files, found)
        left_out = [*told_unknown(unknown), *linked]
        below = sum(
            len(split_pictures(p.glob("*"))[0]) for p in folder.glob("*") if p.is_dir() and p.name[0] != "."
        )
        if below:
            left_out.append(f"{below} in folders below")
        if left_out and found:
            warn(f"{folder}: {len(found)} pictures are read; left out: {', '.join(left_out)}")
        if said.rows and (silent := [path.name for path in found if path not in said.rows]):
            said.notes.append(f"{len(silent)} pictures without a row ({listed(silent)})")
        if said.notes:
            warn(f"{folder}: of its manifest is not used: {'; '.join(said.notes)}")
        pictures = [Picture(path, *said.rows.get(path, (None, None))) for path in found]
        return cls(folder, pictures, bool(said.rows), left_out)

    @property
    def sha256(self) -> str:
        """Hash of the pictures' names, contents and prompts."""
        files = hash_files([picture.path for picture in self.pictures], self.path)
        return digest([files, [picture.prompt for picture in self.pictures]])

    def none_found(self, least: int = 1) -> UserError:
        """The error for too few pictures."""
        rest = f" ({', '.join(self.left_out)} left out)" if self.left_out else ""
        return UserError(
            f"{self.path} holds {len(self.pictures)} pictures{rest}, expected at least {least}, such as .png, .jpg or .webp"
        )


def holds_pictures(folder: PathLike) -> bool:
    """Whether a folder has pictures, of any format, and no model."""
    folder = Path(folder)
    if not folder.is_dir() or any((folder / name).is_file() for name in ("model_index.json", "config.json")):
        return False
    found, unknown = split_pictures(folder.glob("*"))
    return bool(found or unknown)


def caption_of(name: str, data: bytes, place: str) -> str:
    """The caption in a file ``.txt`` or ``.caption`` (its words) or ``.json`` (an object with one of ``COLUMNS``).

    Raises:
        UserError: another encoding, or no JSON.
    """
    text = decode_text(data, place)
    if not name.lower().endswith(".json"):
        return " ".join(text.split())
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} holds a caption that is no JSON ({error})") from None
    row = row if isinstance(row, dict) else {"text": row}
    return next((row[name].strip() for name in COLUMNS if isinstance(row.get(name), str)), "")


def match_captions(
    pictures: Sequence[str], texts: Mapping[str, Callable[[], str]]
) -> tuple[dict[str, str], list[str], int]:
    """Captions of pictures from the texts beside them, both by their names with ``/`` between folders.

    ``a.1.jpg`` has its caption in ``a.1.txt`` or ``a.1.jpg.txt``, or with ``.caption`` or ``.json``; else in the only text of its
    sample, as WebDataset has it: of the same name up to the first dot.

    Args:
        texts: name -> reads the caption.

    Returns:
        captions by picture; texts that are of no picture; how many pictures have several texts that differ, of which the
        first one in the order of ``CAPTIONS`` counts.
    """
    by_name = {_folded(name): name for name in texts}
    captions: dict[str, str] = {}
    used: set[str] = set()
    differing = 0
    for picture in pictures:
        stem = str(PurePosixPath(picture).with_suffix(""))
        wanted = [f"{base}{suffix}" for suffix in CAPTIONS for base in (stem, picture)]
        found = [by_name[name] for name in map(_folded, wanted) if name in by_name]
        used.update(found)
        told = list(dict.fromkeys(text for text in (texts[name]() for name in found) if text))
        differing += len(told) > 1
        if found:
            captions[picture] = told[0] if told else ""
    samples: dict[str, list[list[str]]] = {}
    for kind, names in enumerate((pictures, texts)):
        for name in names:
            samples.setdefault(_sample(name), [[], []])[kind].append(name)
    for found_pictures, found_texts in samples.values():
        if len(found_pictures) == len(found_texts) == 1 and found_pictures[0] not in captions:
            captions[found_pictures[0]] = texts[found_texts[0]]()
            used.add(found_texts[0])
    return captions, [name for name in texts if name not in used], differing


def folder_captions(folder: Path, files: Sequence[Path]) -> tuple[dict[Path, str], list[str]]:
    """Captions of the pictures among the files of a folder, from the texts beside them, else from its manifests; and phrases
    about texts that found no picture."""
    files, notes = split_linked(files, folder)
    pictures, _ = split_pictures(files)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    texts = {
        name: partial(_read_caption, path)
        for name, path in names.items()
        if path.suffix.lower() in CAPTIONS and path.name[0] != "."
    }
    found, unused, differing = match_captions([p.relative_to(folder).as_posix() for p in pictures], texts)
    captions = {names[name]: text for name, text in found.items()}
    said = read_manifests(files, pictures)
    for path, (prompt, _) in said.rows.items():
        captions.setdefault(path, prompt or "")
    notes += said.notes
    unused = [name for name in unused if not name.lower().endswith(".json")]  # which hold many other things
    if pictures and unused:
        notes.append(f"{len(unused)} texts of no picture ({listed(unused)})")
    if differing:
        notes.append(
            f"{differing} pictures with several texts that differ: {', '.join(CAPTIONS)} count in this order"
        )
    return captions, notes


def _read_caption(path: Path) -> str:
    try:
        return caption_of(path.name, read_bytes(path, MAX_CAPTION, "a caption"), str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def _sample(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _folded(name: str) -> str:
    """A name whose last suffix is in lower case."""
    path = PurePosixPath(name)
    return name[: len(name) - len(path.suffix)] + path.suffix.lower()
