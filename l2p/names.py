"""Names of the pictures that one command writes: made for the whole set first, so that none takes another's."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath

SLUG = 48  # characters of a prompt in a name


def prompt_names(prompts: Sequence[str], seeds: Sequence[int] | None = None) -> list[str]:
    """Names of pictures by their prompts, ``[ROW-]SLUG[-HASH][-seedSEED].png``.

    ROW counts the prompts where there are several, so that natural order is their order; HASH stands for the rest of a
    prompt that was cut.

    Args:
        prompts: one a picture; equal ones whose seeds go up are one prompt's pictures.
        seeds: one a picture; None leaves them out.
    """
    rows: list[int] = []
    for index, prompt in enumerate(prompts):
        same = (
            seeds is not None
            and index > 0
            and prompt == prompts[index - 1]
            and seeds[index] > seeds[index - 1]
        )
        rows.append((rows[-1] + (not same)) if rows else 0)
    digits = len(str(rows[-1])) if rows else 0
    names = []
    for index, prompt in enumerate(prompts):
        row = f"{rows[index]:0{digits}d}-" if rows[-1] else ""
        seed = f"-seed{seeds[index]}" if seeds is not None else ""
        names.append(f"{row}{_slug(prompt)}{seed}.png")
    return unique(names)


def unique(names: Sequence[str]) -> list[str]:
    """The names, those that came before numbered ``NAME-2.png`` and so on; no two are alike on a disk that knows no case."""
    wanted = {_folded(name) for name in names}
    taken: set[str] = set()
    found = []
    for name in names:
        path, number = PurePath(name), 1
        while _folded(name) in taken or (number > 1 and _folded(name) in wanted):
            number += 1
            name = f"{path.stem}-{number}{path.suffix}"
        taken.add(_folded(name))
        found.append(name)
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _slug(prompt: str) -> str:
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")
    if len(slug) <= SLUG:
        return slug or "picture"
    return f"{slug[:SLUG].rstrip('-')}-{hashlib.sha256(prompt.encode(errors='replace')).hexdigest()[:8]}"
