"""Where texts and pictures come from: a file, a folder, or a data set on the Hub, named by one string.

    prompts.txt   captions.jsonl#caption   captions.parquet#text   hub:USER/NAME[@REVISION][:FILES][#COLUMN]

A data set on the Hub is its files and nothing else: they are fetched and read here, and no code of it ever runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.extras import install_hint
from l2p.remote import HubName, download

HUB = "hub:"
COLUMNS = ("prompt", "caption", "text")  # looked for in this order where none is named
TEXTS = (".txt", ".jsonl", ".parquet")


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
        """Files with one of these suffixes, in the order of their names; those of the Hub are fetched first.

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
                f"there is nothing at {str(self.path)!r}: expected a file, a folder or hub:USER/NAME"
            )
        if not found:
            raise UserError(f"{self.text} has no file that ends in {', '.join(suffixes)}")
        return found


def _files(folder: Path, suffixes: Sequence[str], pattern: str = "*") -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(
        path for path in found if path.relative_to(folder).match(pattern) and not path.name.startswith(".")
    )


def read_texts(source: str) -> tuple[str, ...]:
    """The prompts of a text file (one a line), of JSON lines, of Parquet files, or of a data set on the Hub.

    Args:
        source: see the top of this file; without a column, the first of ``COLUMNS`` that is there is read.

    Raises:
        UserError: the file is missing, is none of these, lacks the column or holds no prompt.
    """
    parsed = _parsed(source)
    if parsed.path is not None and parsed.path.is_dir():
        raise UserError(f"cannot read the prompts in {source}: expected a file, found a folder")
    lines = tuple(
        line for path in _located(parsed) for line in _read(path, path.stat().st_mtime_ns, parsed.column)
    )
    if not lines:
        raise UserError(f"{source} holds no prompt: write one a line")
    return lines


@lru_cache(maxsize=64)
def _parsed(source: str) -> Source:
    return Source.parse(source)


@lru_cache(maxsize=64)
def _fetched(parsed: Source) -> list[Path]:
    return parsed.locate(TEXTS)


def _located(parsed: Source) -> list[Path]:
    return _fetched(parsed) if parsed.hub is not None else parsed.locate(TEXTS)


@lru_cache(maxsize=8)
def _read(path: Path, modified_ns: int, column: str | None) -> tuple[str, ...]:
    lines = (str(text).strip() for text in _texts(path, column))
    return tuple(line for line in lines if line)


def _texts(path: Path, column: str | None) -> Iterable[Any]:
    if path.suffix.lower() == ".parquet":
        return read_parquet(path, column)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts in {path}: expected a UTF-8 text file ({error})") from None
    return _json_texts(path, lines, column) if path.suffix.lower() == ".jsonl" else lines


def _json_texts(path: Path, lines: list[str], column: str | None) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(
                f"{path}:{number} is no JSON ({error}): expected an object or a string a line"
            ) from None
        if isinstance(row, dict):
            column = column or pick_column(row, path)
            row = row.get(column)
        if not isinstance(row, str):
            raise UserError(
                f"{path}:{number} has no text{f' under {column!r}' if column else ''}: {line[:60]}"
            )
        yield row


def pick_column(names: Iterable[str], path: Path) -> str:
    """The first of ``COLUMNS`` among a table's names. Raises UserError where none is."""
    names = list(names)
    found = next((name for name in COLUMNS if name in names), None)
    if found is None:
        raise UserError(
            f"{path} has the columns {', '.join(names)}: name one, such as {path.name}#{names[0]}"
        )
    return found


def read_parquet(path: Path, column: str | None) -> list[Any]:
    """One column of a Parquet file; without a name, the first of ``COLUMNS``. Raises UserError."""
    table = open_parquet(path)
    column = column or pick_column(table.schema_arrow.names, path)
    if column not in table.schema_arrow.names:
        raise UserError(f"{path} has no column {column!r}, only {', '.join(table.schema_arrow.names)}")
    values = table.read(columns=[column]).column(column).to_pylist()
    return [value for value in values if value is not None]


def open_parquet(path: Path) -> Any:
    """Pyarrow's view of a Parquet file. Raises UserError where pyarrow is not installed or the file is none."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise UserError(f"{path} needs pyarrow: {install_hint('corpus')}") from None
    try:
        return ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(
            f"cannot read {path}: expected a Parquet file ({str(error).splitlines()[0]})"
        ) from None
