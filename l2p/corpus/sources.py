"""Where texts and pictures come from: a file, a folder, or a data set on the Hub, named by one string.

    prompts.txt   captions.jsonl#caption   captions.csv#text   hub:USER/NAME[@REVISION][:FILES][#COLUMN]

:mod:`l2p.texts` lists the formats of texts.
A data set on the Hub is its files and nothing else: they are fetched and read here, and no code of it ever runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from l2p.errors import UserError
from l2p.hub.client import HubName, download
from l2p.picture_manifest import FILE_NAME
from l2p.texts import FORMATS, read_prompts, read_table

HUB = "hub:"


@dataclass(frozen=True)
class Source:
    """A parsed name: a local path, or files of a data set; and the column of its texts."""

    text: str
    path: Path | None = None
    hub: HubName | None = None
    files: str | None = None
    column: str | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Raises UserError where a name that begins with "hub:" is none."""
        name, hash_, column = text.rpartition("#")
        if not hash_ or Path(text).exists():  # a file's own name may hold the sign
            name, column = text, ""
        if not name.startswith(HUB):
            return cls(text, path=Path(name), column=column or None)
        repo, _, files = name.removeprefix(HUB).partition(":")
        hub = HubName.parse(repo, "dataset")
        if hub is None:
            raise UserError(
                f"{text!r} is no data set's name: expected hub:USER/NAME[@REVISION][:FILES][#COLUMN]"
            )
        return cls(text, hub=hub, files=files or None, column=column or None)

    def locate(self, suffixes: Sequence[str]) -> list[Path]:
        """Files whose names end like this, in the order of their names; those of the Hub are fetched first.

        Raises:
            UserError: there is no such file or folder, or it holds none of these.
        """
        if self.hub is not None:
            patterns = [self.files] if self.files else [f"*{suffix}" for suffix in suffixes]
            found = _files(download(self.hub, patterns), suffixes, self.files or "*")
        elif self.path.is_dir():
            found = _files(self.path, suffixes)
        elif self.path.is_file():
            found = [self.path]
        else:
            raise UserError(
                f"no such file or directory: {self.path} (expected a file, a folder or hub:USER/NAME)"
            )
        if not found:
            raise UserError(f"{self.text} has no file that ends in {', '.join(suffixes[:4])} or the like")
        return found


def _files(folder: Path, suffixes: Sequence[str], pattern: str = "*") -> list[Path]:
    found = (
        path for path in folder.rglob("*") if path.name.lower().endswith(tuple(suffixes)) and path.is_file()
    )
    return sorted(
        path for path in found if path.relative_to(folder).match(pattern) and not path.name.startswith(".")
    )


def read_texts(source: str, paired: bool = False) -> tuple[str, ...]:
    """The prompts of a file in one of the formats of :mod:`l2p.texts`, or of the files of a data set on the Hub.

    Args:
        source: see the top of this file; without a column, the first of ``texts.COLUMNS`` that is there is read.
        paired: see :func:`l2p.texts.read_prompts`.

    Raises:
        UserError: the file is missing, is none of these, lacks the column or holds no prompt.
    """
    parsed = _parsed(source)
    if parsed.path is not None and parsed.path.is_dir():
        raise UserError(f"cannot read the prompts in {source}: expected a file, found a folder")
    lines = tuple(
        line
        for path in _located(parsed)
        for line in _read(path, path.stat().st_mtime_ns, path.stat().st_size, parsed.column, paired)
    )
    if not lines:
        raise UserError(f"{source} holds no prompt: write one a line")
    return lines


def read_names(source: str) -> list[str] | None:
    """The column ``file_name`` of a table on the disk; None where it has none."""
    path = _parsed(source).path
    table = read_table(path) if path is not None and path.is_file() else None
    column = table.find((FILE_NAME,)) if table is not None else None
    return None if table is None or column is None else list(table.values(column))


@lru_cache(maxsize=64)
def _parsed(source: str) -> Source:
    return Source.parse(source)


@lru_cache(maxsize=64)
def _fetched(parsed: Source) -> list[Path]:
    return parsed.locate(FORMATS)


def _located(parsed: Source) -> list[Path]:
    return _fetched(parsed) if parsed.hub is not None else parsed.locate(FORMATS)


@lru_cache(maxsize=8)
def _read(path: Path, modified_ns: int, size: int, column: str | None, paired: bool) -> tuple[str, ...]:
    return tuple(read_prompts(path, column, paired))
