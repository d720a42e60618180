"""What reaches a terminal: without commands to it, without keys, whoever wrote the text.

Names, configs, prompts, answers of servers and warnings of libraries may hold the text of strangers. So nothing is cleaned where
it is printed, but where it leaves: the command's stdout and stderr (:func:`clean_streams`); :mod:`l2p.console` does the same for
tables and bars.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from l2p.errors import printable
from l2p.keys import mask

BAR = re.compile(r"(?:\n|\x1b\[A)+")  # what tqdm writes to move between its bars


def clean(text: object) -> str:
    """`text` without commands to a terminal and without anything that looks like a key."""
    return printable(mask(text))


def say(line: str) -> None:
    """One line on stderr."""
    print(clean(" ".join(line.split("\n"))), file=sys.stderr, flush=True)


class CleanStream:
    """A text stream whose writes are cleaned; all else is the stream's own.

    Attributes:
        raw: the stream itself, for who cleans before.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        if not BAR.fullmatch(text):
            start = "\r" if text.startswith("\r") else ""  # a bar that is drawn anew
            self.raw.write(start + clean(text[len(start) :]))
        else:
            self.raw.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw_stream(stream: Any) -> Any:
    """The stream that a :class:`CleanStream` writes to; any other is itself."""
    return stream.raw if isinstance(stream, CleanStream) else stream


@contextmanager
def clean_streams() -> Iterator[None]:
    """Within, what is written to stdout and stderr is cleaned; a traceback that ends the process is, too."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = CleanStream(raw_stream(out)), CleanStream(raw_stream(err))
    sys.excepthook = _excepthook
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def _excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    import traceback

    lines = traceback.format_exception(kind, error, trace)
    print(clean("".join(lines)), end="", file=sys.stderr)
