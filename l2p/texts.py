"""The one reader of texts: prompt lists, captions and tables of them, and the one writer of prompt lists.

    .txt                    a text a line
    .jsonl .ndjson .json    strings, or objects with a column of texts; a list of them, or one a line
    .csv .tsv               a header, and a column of texts; fields are separated by commas, semicolons or tabs
    .parquet                a column of strings

The suffix names the format; Parquet and JSON are recognised by their content as well. Text is UTF-8, or UTF-16 with its byte
order mark. Lines end with ``\\n`` or ``\\r\\n``, and with nothing else that Unicode takes for a line's end.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p.errors import UserError, warn
from l2p.extras import install_hint
from l2p.files import PathLike, read_bytes, write_text

COLUMNS = ("prompt", "caption", "text")  # looked for in this order where none is named
FORMATS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = b"PAR1"
MOST_ROWS = 20_000_000  # of a file
MOST_BYTES = 2**29  # of a file of text
MOST_DECLARED, MOST_UNPACKED = 4 * 2**30, 2 * 2**30  # bytes of a Parquet file, and of the texts of a column
BATCH = 2**16  # rows of a Parquet file decoded at once
SEPARATORS = ",;\t"
PRINTED_STARTS = ("b", "[", "(", "{")  # of bytes, lists, tuples and objects that a program printed
LONGEST_PRINTED = 100_000  # characters; a longer text is none
NUMBERED = re.compile(r"\d+\s*[\t;,|]\s*\S")  # a line of a table without a header
WORDS = re.compile(r"\w+([ -]\w+){0,2}")  # a column's name
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?([eE][+-]?\d+)?")
HEADERS = (*COLUMNS, *(f"{name}s" for name in COLUMNS))


def decode_text(data: bytes, name: PathLike) -> str:
    """Bytes of UTF-8, or of UTF-16 with its byte order mark, as text without the mark.

    Raises:
        UserError: another encoding; names the line.
    """
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise UserError(
            f"{name}:1 is UTF-32, expected UTF-8 or UTF-16 with its byte order mark: save it as UTF-8"
        )
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if wide else "utf-8-sig"
    if data.count(b"\n") > MOST_ROWS:
        raise UserError(f"{name} has {data.count(10):,} lines, at most {MOST_ROWS:,} are read")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="replace")
        raise UserError(
            f"{name}:{before.count(chr(10)) + 1} is no {'UTF-16' if wide else 'UTF-8'} (byte 0x{data[error.start]:02x}), "
            "expected UTF-8 or UTF-16 with its byte order mark: save it as UTF-8"
        ) from None
    if (nul := text.find("\0")) >= 0:
        raise UserError(
            f"{name}:{text.count(chr(10), 0, nul) + 1} holds a NUL byte, expected text: UTF-8, or UTF-16 with its byte "
            "order mark"
        )
    return text


def read_text(path: PathLike) -> str:
    """The text of a file, see :func:`decode_text`. Raises UserError where it cannot be read."""
    try:
        return decode_text(read_bytes(path, MOST_BYTES, "a text file"), path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def read_lines(path: PathLike) -> list[str]:
    """The lines of a text file, without the white space around them; blank ones are empty strings."""
    return split_lines(read_text(path), path)


def split_lines(text: str, name: PathLike) -> list[str]:
    """The lines of a text, without the white space around them; blank ones at its end are left out.

    Raises:
        UserError: a carriage return inside a line.
    """
    lines = [line.removeprefix("\ufeff").strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        if "\r" in line:
            raise UserError(f"{name}:{number} holds a carriage return: end lines with \\n or \\r\\n")
    return lines


@dataclass(frozen=True)
class Table:
    """Rows of a file.

    Attributes:
        name: of the file.
        columns: their names; empty for a file of plain lines.
        places: where each row lies, such as ":3" (a line) or " row 3".
        values: column -> a value a row; of plain lines whatever the column.
    """

    name: str
    columns: tuple[str, ...]
    places: Sequence[str]
    values: Callable[[str], Sequence[Any]]

    def pick(self, column: str | None, wanted: Sequence[str] = COLUMNS) -> str:
        """The column of this name, or else the first of `wanted`. Raises UserError where there is none."""
        listed = ", ".join(self.columns)
        if not self.columns:
            return column or ""
        if column is not None:
            if column not in self.columns:
                raise UserError(f"{self.name} has no column {column!r}, only {listed}")
            found: str | None = column
        else:
            found = self.find(wanted)
        if found is None:
            raise UserError(
                f"{self.name} has the columns {listed}: name one, such as {Path(self.name).name}#{self.columns[0]}"
            )
        if self.columns.count(found) > 1:
            raise UserError(f"{self.name} has several columns {found!r}: rename all but one")
        return found

    def find(self, wanted: Sequence[str]) -> str | None:
        """The first of these columns that is there, in any case of its letters; None where none is."""
        lower = {name.strip().lower(): name for name in reversed(self.columns)}
        return next((lower[name] for name in wanted if name in lower), None)

    def texts(self, column: str | None = None) -> list[str]:
        """The texts of a column, without the white space around them; empty where a row has none.

        Raises:
            UserError: no such column, or a value that is no text.
        """
        column = self.pick(column)
        values = self.values(column)
        assert len(values) == len(self.places)
        texts = ["" if value is None else self._text(value, row, column) for row, value in enumerate(values)]
        filled = [text for text in texts if text]
        if self.columns and filled and all(NUMBER.fullmatch(text) for text in filled):
            raise UserError(
                f"the column {column!r} of {self.name} holds numbers, expected texts: name another one"
            )
        return texts

    def _text(self, value: Any, row: int, column: str) -> str:
        if isinstance(value, str):
            text = value.strip()
            if text.isascii() and text[:1] not in PRINTED_STARTS:
                return text
        where = f"{self.name}{self.places[row]}"
        if value is MISSING:
            raise UserError(f"{where} has no text under {column!r}")
        if not isinstance(value, str):
            shown = json.dumps(value, ensure_ascii=False, default=repr)
            raise UserError(f"{where} has no text{f' under {column!r}' if column else ''}: {shown[:60]}")
        if (kind := printed_kind(text)) is not None:
            raise UserError(
                f"{where} holds what a program prints for {kind}, expected plain text: {text[:60]}"
            )
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise UserError(f"{where} holds half of a surrogate pair, which is no character")
        return text


def printed_kind(text: str) -> str | None:
    """What a program printed into a text: "bytes", "a list", "a tuple" or "an object", in Python's or JSON's form; None for words."""
    if not text.startswith(PRINTED_STARTS) or text[-1] not in "'\"])}" or len(text) > LONGEST_PRINTED:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes that are none
                value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return None
    kinds = {bytes: "bytes", list: "a list", tuple: "a tuple", dict: "an object", set: "an object"}
    return kinds.get(type(value))


MISSING = object()  # in a row that lacks the column


def read_table(path: PathLike) -> Table:
    """The rows of a file in any format of this module.

    Raises:
        UserError: the file cannot be read, or is not what its suffix says.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path} is no regular file, expected a text file")  # it may never end
        with open(path, "rb") as file:
            start = file.read(len(PARQUET))
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    if start == PARQUET or suffix == ".parquet":
        return _parquet(path)
    text = read_text(path)
    if suffix in (".csv", ".tsv"):
        return _csv(text, path)
    if suffix in JSON:
        return _json(text, path)
    if suffix not in ("", ".txt"):
        raise UserError(
            f"{path} ends in {path.suffix}, expected {', '.join(FORMATS)}: name it after what it holds"
        )
    return _plain(text, path)


def read_prompts(path: PathLike, column: str | None = None, paired: bool = False) -> list[str]:
    """The texts of a file.

    Args:
        column: of a table; the first of ``COLUMNS`` that is there if None.
        paired: whether each text belongs to a thing of its own: one that is blank is then refused, not left out.

    Raises:
        UserError: see :meth:`Table.texts`; or a blank text that is paired.
    """
    table = read_table(path)
    texts = table.texts(column)
    blank = [table.places[row] for row, text in enumerate(texts) if not text]
    if blank and paired:
        raise UserError(
            f"{table.name}{blank[0]} is blank, but each text belongs to one picture: fill it in, or remove it"
        )
    if blank and table.columns:
        warn(f"{table.name}: {len(blank)} of {len(texts)} rows have no text and are left out")
    return [text for text in texts if text]


def write_prompts(path: PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines, one object a row, which :func:`read_table` reads back as they were, line breaks and all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _plain(text: str, path: Path) -> Table:
    lines = split_lines(text, path)
    first = next((line for line in lines if line), "")
    if first.startswith(("{", "[")) and (_parsed(text) is not None or isinstance(_parsed(first), dict)):
        return _json(text, path)
    words = [word.strip().strip('"').lower() for word in re.split(f"[{SEPARATORS}]", first)]
    spaced = "\t" in first or ";" in first  # by a comma, words are a sentence
    if any(word in HEADERS for word in words) and all(
        WORDS.fullmatch(word) if spaced else re.fullmatch(r"\w+", word) for word in words
    ):
        if len(words) > 1 or len(lines) > 1:
            raise UserError(
                f"{path}:1 looks like a header ({first}): name the file {path.stem}.csv, or remove this line"
            )
    filled = [line for line in lines if line]
    if filled and all(map(NUMBERED.match, filled)) and (len(filled) > 1 or "\t" in first):
        raise UserError(
            f"{path}:1 looks like a row of a table ({first[:60]}): name the file {path.stem}.csv and give it a header such as "
            "id,prompt"
        )
    if filled and all(line.startswith('"') and isinstance(_parsed(line), str) for line in filled):
        return _json(text, path)
    return Table(str(path), (), [f":{n}" for n in range(1, len(lines) + 1)], lambda _: lines)


def _parsed(text: str) -> list | dict | str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, (list, dict, str)) else None


def _json(text: str, path: Path) -> Table:
    rows: list[Any]
    places: list[str]
    try:
        whole = json.loads(text.strip() or "[]")
        if isinstance(whole, dict) and path.suffix.lower() == ".json":
            columns = {name: value for name, value in whole.items() if isinstance(value, list)}
            if columns and len({*map(len, columns.values())}) == 1:  # {"prompt": ["a", "b"]}
                places = [f" item {n}" for n in range(1, len(next(iter(columns.values()))) + 1)]
                return Table(str(path), tuple(columns), places, lambda name: columns[name])
        rows = whole if isinstance(whole, list) else [whole]
        places = [f" item {n}" for n in range(1, len(rows) + 1)] if isinstance(whole, list) else [":1"]
    except (ValueError, RecursionError) as error:
        rows, places = _json_lines(text, path, error)
    names = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)

    def values(column: str) -> list[Any]:
        return [row.get(column, MISSING) if isinstance(row, dict) else row for row in rows]

    return Table(str(path), tuple(names), places, values)


def _json_lines(text: str, path: Path, whole: Exception) -> tuple[list[Any], list[str]]:
    rows, places = [], []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removeprefix("\ufeff").strip()
        try:
            rows.append(json.loads(line) if line else "")  # a blank line is a row without a text
        except (ValueError, RecursionError) as error:
            told = error
            if not places and isinstance(whole, json.JSONDecodeError) and path.suffix.lower() == ".json":
                number, told = whole.lineno, whole
            raise UserError(
                f"{path}:{number} is no JSON ({told}): expected an object or a string a line, or a list of them"
            ) from None
        places.append(f":{number}")
    while rows and rows[-1] == "":
        rows.pop()
    return rows, places[: len(rows)]


def _csv(text: str, path: Path) -> Table:
    first = text.lstrip("\r\n").split("\n", 1)[0]
    names = {sign: [name.strip().strip('"').lower() for name in first.split(sign)] for sign in SEPARATORS}
    known = [sign for sign in SEPARATORS if any(name in names[sign] for name in COLUMNS)]
    separator = max(known or SEPARATORS, key=lambda sign: len(names[sign]))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    places: list[str] = []
    header: list[str] | None = None
    try:
        while True:
            number = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                break
            if header is None:
                header = [name.strip() for name in row] or None
            elif row and len(row) != len(header):
                raise UserError(
                    f"{path}:{number} has {len(row)} fields, the header has {len(header)}: put texts that hold "
                    f"{separator!r} into quotes"
                )
            else:
                rows.append(row or [""] * len(header))
                places.append(f":{number}")
    except csv.Error as error:
        raise UserError(f"{path}:{number} is no CSV: {error}") from None
    while rows and not any(rows[-1]):
        rows.pop()
    header = header or []
    return Table(
        str(path), tuple(header), places[: len(rows)], lambda name: [row[header.index(name)] for row in rows]
    )


class _RowPlaces(Sequence[str]):
    """ " row 1", " row 2" and so on, made when they are asked for: one for each of millions of rows is memory."""

    def __init__(self, count: int) -> None:
        self._rows = range(1, count + 1)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        found = self._rows[index]
        return f" row {found}" if isinstance(found, int) else [f" row {n}" for n in found]


def _parquet(path: Path) -> Table:
    try:
        from pyarrow.parquet import ParquetFile, read_schema
    except ModuleNotFoundError:
        raise UserError(f"{path} needs pyarrow: {install_hint('corpus')}") from None

    def unreadable(error: Exception) -> UserError:
        return UserError(
            f"cannot read {path}: expected a Parquet file ({(str(error).splitlines() or [''])[0]})"
        )

    try:
        schema = read_schema(path)
        file = ParquetFile(path, read_dictionary=[f.name for f in schema if _is_text(f.type)])
        rows, names = file.metadata.num_rows, tuple(schema.names)
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    except Exception as error:  # pyarrow raises a dozen kinds, ValueError and MemoryError among them
        raise unreadable(error) from None
    if not 0 <= rows <= MOST_ROWS or not 0 <= size <= MOST_DECLARED:  # a small file may declare any number
        raise UserError(
            f"{path} declares {rows:,} rows and {size:,} bytes, at most {MOST_ROWS:,} and {MOST_DECLARED:,} are read"
        )

    def values(column: str) -> list[Any]:
        kind = schema.field(column).type
        if kind.num_fields or str(kind).startswith("fixed_size"):  # which decode to any number of bytes a row
            raise UserError(f"{path} row 1 has no text under {column!r}: the column holds {str(kind)[:60]}")
        found: list[Any] = []
        shared, texts, left = None, [], MOST_UNPACKED
        try:
            for batch in file.iter_batches(BATCH, columns=[column]):
                part = batch.column(0)
                is_coded = hasattr(part, "dictionary")  # a text that many rows share is unpacked once
                fresh = part.dictionary if is_coded else part
                if not is_coded or shared is None or not fresh.equals(shared):
                    left -= fresh.nbytes
                    if left < 0 or len(found) + len(part) > rows:
                        raise UserError(
                            f"the column {column!r} of {path} holds more than {MOST_UNPACKED:,} bytes or {rows:,} rows"
                        )
                    shared, texts = fresh, fresh.to_pylist()
                indices = part.indices.to_pylist() if is_coded else range(len(texts))
                found += [None if index is None else texts[index] for index in indices]
        except UserError:
            raise
        except Exception as error:
            raise unreadable(error) from None
        if len(found) != rows:
            raise UserError(f"{path} declares {rows:,} rows and holds {len(found):,}: it is cut short")
        return found

    return Table(str(path), names, _RowPlaces(rows), values)


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string")
