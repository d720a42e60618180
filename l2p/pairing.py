"""Which pictures of two folders belong together, and which prompt is whose: by name, or not at all; never by position alone.

Two pictures are a pair where both folders say (in a manifest) that they are of one prompt and one seed. Of pictures of which
neither folder says anything, equal names make a pair. Where only one folder says something, a number is no name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from l2p.errors import UserError, warn
from l2p.picture_folder import Picture, PictureFolder
from l2p.picture_manifest import SHOWN, listed, name_matcher


@dataclass(frozen=True)
class Pairing:
    """The pictures of two folders.

    Attributes:
        pairs: in the natural order of the first folder.
        alone: of each folder, those without a partner.
    """

    folders: tuple[PictureFolder, PictureFolder]
    pairs: list[tuple[Picture, Picture]]
    alone: tuple[list[Picture], list[Picture]]

    def line(self) -> str | None:
        """What is not paired, and why; None where all is."""
        (a, b), (rest_a, rest_b) = self.folders, self.alone
        if not rest_a and not rest_b:
            return None
        parts = [
            f"{_names(rest)} in {folder.path}"
            for folder, rest in zip(self.folders, self.alone, strict=True)
            if rest
        ]
        line = f"{len(self.pairs)} pairs; without a partner: {', '.join(parts)}"
        if a.has_manifest != b.has_manifest and _common(a, b):
            silent = b if a.has_manifest else a
            line += f" (equal numbers are no pair: {silent.path} does not say which prompt and seed its pictures are of)"
        return line


def pair_folders(a: PictureFolder, b: PictureFolder) -> Pairing:
    """Pairs pictures, see the top of this file."""
    partner: dict[Path, Picture] = {}
    taken: set[Path] = set()
    seeds = all(any(picture.seed is not None for picture in folder.pictures) for folder in (a, b))
    one_says = a.has_manifest != b.has_manifest

    def said(picture: Picture) -> Hashable:
        return None if picture.prompt is None else (picture.prompt, picture.seed if seeds else None)

    def stem(picture: Picture) -> Hashable:
        silent = (one_says and picture.path.stem.isdecimal()) or (not one_says and said(picture) is not None)
        return None if silent else normalize("NFC", picture.path.stem)

    for key in (
        lambda picture: said(picture) and (said(picture), picture.path.stem),
        said,
        lambda picture: stem(picture) and picture.path.name,
        stem,
    ):
        ones, others = _only_ones(key, a.pictures), _only_ones(key, b.pictures)
        for value in ones.keys() & others.keys():
            if ones[value].path not in partner and others[value].path not in taken:
                partner[ones[value].path] = others[value]
                taken.add(others[value].path)
    pairs = [(picture, partner[picture.path]) for picture in a.pictures if picture.path in partner]
    alone = [p for p in a.pictures if p.path not in partner], [p for p in b.pictures if p.path not in taken]
    return Pairing((a, b), pairs, alone)


def _only_ones(key: Callable[[Picture], Hashable], pictures: Iterable[Picture]) -> dict[Hashable, Picture]:
    """The pictures whose key no other one has; those without a key are left out."""
    found: dict[Hashable, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if (value := key(picture)) is not None:
            found[value].append(picture)
    return {value: some[0] for value, some in found.items() if len(some) == 1}


def assign_texts(texts: Sequence[str] | Mapping[str, str], source: str, pairing: Pairing) -> dict[Path, str]:
    """The prompt of each picture, and so of its partner.

    Args:
        texts: a prompt a picture in the natural order of a folder's pictures, namely of the folder that has as many pictures;
            or prompts by the names of the pictures.
        source: where they come from, for errors.

    Raises:
        UserError: no folder has so many pictures; both have, and the two readings differ; a picture of the first folder gets no
            prompt by its name; or a manifest says something else.
    """
    found: dict[Path, str] = {}
    folders = list({folder.path: folder for folder in pairing.folders}.values())
    unused = list(texts) if isinstance(texts, Mapping) else []
    for folder in folders:
        if isinstance(texts, Mapping):
            named = _by_picture(texts, source, folder)
            told = [named[p.path][1] if p.path in named else None for p in folder.pictures]
            used = {name for name, _ in named.values()}
            unused = [name for name in unused if name not in used]
        else:
            told = list(texts) if len(texts) == len(folder.pictures) else [None] * len(folder.pictures)
        for picture, text in zip(folder.pictures, told, strict=True):
            if text is not None and picture.prompt not in (None, text):
                raise UserError(
                    f"{source} gives {picture.path} the prompt {text!r}, its folder says {picture.prompt!r}: leave --prompts "
                    "out, or mend one of the two"
                )
            if text is not None:
                found[picture.path] = text
    if not found and not isinstance(texts, Mapping):
        counts = " and ".join(f"{len(folder.pictures)} pictures in {folder.path}" for folder in folders)
        header = any(len(texts) == len(folder.pictures) + 1 for folder in folders)
        raise UserError(
            f"{source} holds {len(texts)} prompts for {counts}: one a picture is expected"
            f"{f' (is its first line, {texts[0]!r}, a header?)' if header else ''}"
        )
    for one, other in pairing.pairs:
        text = found.get(one.path, found.get(other.path))
        if text is None:
            continue
        if found.get(other.path, text) != text:
            raise UserError(
                f"{source} fits both folders, and they differ: {one.path} would show {text!r}, its partner {other.path} "
                f"{found[other.path]!r}; rename the pictures, or name them in a column file_name"
            )
        found[one.path] = found[other.path] = text
    if isinstance(texts, Mapping):
        missing = [picture for picture in folders[0].pictures if picture.path not in found]
        if missing:
            raise UserError(f"{source} has no prompt for {_names(missing)} in {folders[0].path}")
        if unused:
            warn(f"{len(unused)} rows of {source} name no picture ({listed(unused)})")
    return found


def _by_picture(texts: Mapping[str, str], source: str, folder: PictureFolder) -> dict[Path, tuple[str, str]]:
    """The row's name and the prompt of each picture of a folder that a row names."""
    find = name_matcher([picture.path for picture in folder.pictures], folder.path)
    found: dict[Path, tuple[str, str]] = {}
    for name, text in texts.items():
        if (path := find(name)) is None:
            continue
        if path in found and found[path][1] != text:
            raise UserError(
                f"{source} gives {path.name} two prompts, as {found[path][0]} and as {name}: remove one"
            )
        found[path] = (name, text)
    return found


def check_numbers(pictures: Sequence[Picture]) -> None:
    """Raises UserError where pictures are numbered and a number is missing, so that the n-th one is not number n."""
    numbers = [int(picture.path.stem) for picture in pictures if picture.path.stem.isdecimal()]
    if len(numbers) == len(pictures) and numbers[-1] - numbers[0] + 1 != len(numbers):
        gap = next(n + 1 for n, after in zip(numbers, numbers[1:], strict=False) if after != n + 1)
        raise UserError(
            f"{pictures[0].path.parent} has no picture number {gap}: the prompts of the others cannot be counted off; give them in "
            "a file, --prompts FILE"
        )


def _common(a: PictureFolder, b: PictureFolder) -> bool:
    return bool({p.path.stem for p in a.pictures} & {p.path.stem for p in b.pictures})


def _names(pictures: Sequence[Picture]) -> str:
    more = f" and {len(pictures) - SHOWN} more" if len(pictures) > SHOWN else ""
    return ", ".join(picture.path.name for picture in pictures[:SHOWN]) + more
