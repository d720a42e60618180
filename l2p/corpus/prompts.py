"""The prompt of each sample of a corpus: captions of `landscapes`, sentences of a taxonomy, or the lines of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from l2p.corpus.sources import read_names, read_texts
from l2p.corpus.taxonomy import TAXONOMY, is_taxonomy, load_taxonomy
from l2p.errors import UserError
from l2p.pairing import Pairing, assign_texts, check_numbers

LANDSCAPES = "landscapes"


def is_endless(source: str | Path) -> bool:
    """Whether the prompts of `source` are made, of a seed each, and not read from a file."""
    return str(source) == LANDSCAPES or is_taxonomy(source)


def prompts_for(source: str | Path, indices: Iterable[int], seed: int = 0) -> list[str]:
    """The prompts of these samples.

    Args:
        source: "landscapes" (the caption of the scene of seed ``seed + index``); "taxonomy" or a YAML file of that form
            (:mod:`~l2p.corpus.taxonomy`, the sentence of seed ``seed + index``); or texts as
            :func:`~l2p.corpus.sources.read_texts` takes them, which start over when they are fewer than the samples.
        indices: sample numbers, at least 0.

    Raises:
        UserError: the source is missing, is none of these or holds no prompt.
    """
    if str(source) == LANDSCAPES:
        from l2p.landscapes import Scene, caption

        return [caption(Scene.from_seed(seed + index)) for index in indices]
    if is_taxonomy(source):
        taxonomy = load_taxonomy(source)
        return [taxonomy.prompt(seed + index) for index in indices]
    lines = read_texts(str(source))
    return [lines[index % len(lines)] for index in indices]


def prompts_of(source: str | Path, pairing: Pairing) -> dict[Path, str]:
    """The prompts of pictures that are there already, see :func:`l2p.pairing.assign_texts`.

    Args:
        source: as for :func:`prompts_for`; a table with a column ``file_name`` gives prompts by the pictures' names. What is
            made and not read is of the first folder.

    Raises:
        UserError: a blank prompt, or another number of them.
    """
    if is_endless(source):
        pictures = pairing.folders[0].pictures
        check_numbers(pictures)
        return assign_texts(prompts_for(source, range(len(pictures))), str(source), pairing)
    if (names := read_names(str(source))) is not None:
        texts: dict[str, str] = {}
        for name, text in zip(names, read_texts(str(source), True), strict=True):
            if texts.setdefault(name, text) != text:
                raise UserError(f"{source} gives {name} two prompts: remove one of the rows")
        return assign_texts(texts, str(source), pairing)
    return assign_texts(read_texts(str(source), paired=True), str(source), pairing)


def fingerprint(source: str | Path, seed: int = 0) -> str:
    """Sha256 of the prompts: of all that are read, or of the first ones made, which change with what makes them."""
    lines = prompts_for(source, range(32), seed) if is_endless(source) else read_texts(str(source))
    separator = "\0" if any("\n" in line for line in lines) else "\n"
    return hashlib.sha256(separator.join(lines).encode()).hexdigest()


def short_name(source: str | Path) -> str:
    """What a manifest calls a source: a file by its name, for folders move."""
    text = str(source)
    return text if text in (LANDSCAPES, TAXONOMY) or text.startswith("hub:") else Path(text).name
