"""What a manifest in a folder says of its pictures: ``metadata.jsonl`` or ``metadata.csv`` with a column ``file_name``, as
Hugging Face's `imagefolder` reads it; of its other columns a prompt (``prompt``, ``caption`` or ``text``) and ``seed`` are read.

Columns are known in any case. A row is of the picture of its name, else of the only one whose name differs in case alone, else
of the only one of that stem. What is not used is counted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.files import PathLike, append_line
from l2p.texts import COLUMNS, Table, read_table

MANIFEST = "metadata.jsonl"
MANIFESTS = (MANIFEST, "metadata.csv")
FILE_NAME, SEED = "file_name", "seed"
SHOWN = 3  # names in a line
MOST = 2**63  # seeds below are known to every generator


@dataclass
class Manifests:
    """The rows of a folder's manifests.

    Attributes:
        rows: prompt and seed of each picture that a row names.
        notes: phrases about rows and seeds that are not used.
    """

    rows: dict[Path, tuple[str | None, int | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_manifests(files: Iterable[Path], pictures: Sequence[Path]) -> Manifests:
    """Prompt and seed of the pictures that the manifests among these files name.

    Raises:
        UserError: a manifest without file names, or two in one folder.
    """
    found = Manifests()
    folders: set[Path] = set()
    for path in files:
        if path.name not in MANIFESTS:
            continue
        if path.parent in folders:
            raise UserError(f"{path.parent} holds {' and '.join(MANIFESTS)}: keep one of them")
        folders.add(path.parent)
        table = read_table(path)
        if table.columns:
            _read(table, path, pictures, found)
    return found


def _read(table: Table, path: Path, pictures: Sequence[Path], found: Manifests) -> None:
    column = table.find((FILE_NAME,))
    if column is None:
        raise UserError(f"{path} has no column {FILE_NAME}, only {', '.join(table.columns)}")
    names = table.values(column)
    known, seeds = table.find(COLUMNS), table.find((SEED,))
    texts: Sequence[str | None] = table.texts(known) if known else [None] * len(names)
    numbers: Sequence[Any] = table.values(seeds) if seeds else [None] * len(names)
    picture_of = name_matcher(pictures, path.parent)
    gone: list[str] = []
    bad: list[str] = []
    twice: list[str] = []
    for name, text, number, place in zip(names, texts, numbers, table.places, strict=True):
        if not isinstance(name, str):
            raise UserError(f"{path}{place} has no text under {column!r}")
        if not is_seed(number):
            bad.append(f"{number}{place}")
        picture = picture_of(name)
        if picture is None:
            gone.append(name)
            continue
        row = (text, seed_of(number))
        if found.rows.get(picture, row) != row:
            twice.append(picture.name)
        found.rows[picture] = row
    if gone:
        found.notes.append(f"{len(gone)} rows of {path.name} of no picture ({listed(gone)})")
    if twice:
        found.notes.append(
            f"{len(twice)} earlier rows of {path.name} about the same picture ({listed(twice)}): the last one counts"
        )
    if bad:
        found.notes.append(
            f"{len(bad)} seeds of {path.name} that are no whole number of 0 or more ({listed(bad)})"
        )


def name_matcher(paths: Sequence[Path], root: Path) -> Callable[[str], Path | None]:
    """Finds the path that a row's name, relative to `root`, means: see the top of this file."""
    keys: tuple[Callable[[Path], Path], ...] = (
        lambda path: path,
        lambda path: path.with_name(path.name.casefold()),
        lambda path: path.with_name(path.stem.casefold()),
    )
    tables: list[dict[Path, list[Path]]] = []
    for key in keys:
        table: dict[Path, list[Path]] = defaultdict(list)
        for path in paths:
            table[key(path)].append(path)
        tables.append(table)

    def find(name: str) -> Path | None:
        if not Path(name).name:
            return None
        wanted = root / name
        folded = wanted.with_name(wanted.name.casefold())
        for table, key in zip(tables, (wanted, folded, folded), strict=True):
            if len(some := table.get(key, [])) == 1:
                return some[0]
        return None

    return find


def seed_of(value: Any) -> int | None:
    """The seed that a manifest's value means, such as 7, "7" or 7.0; None for anything else."""
    if isinstance(value, str) and not value.strip().isdecimal():
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value) if 0 <= int(value) < MOST else None


def is_seed(value: Any) -> bool:
    """Whether a value is a seed, or says nothing of one."""
    return not isinstance(value, (str, int, float, list, dict)) or value == "" or seed_of(value) is not None


def listed(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])


def add_to_manifest(folder: PathLike, row: dict[str, Any]) -> None:
    """Appends a row with ``file_name`` to a folder's manifest; of several about one file the last one counts."""
    append_line(Path(folder) / MANIFEST, json.dumps(row, ensure_ascii=False))
