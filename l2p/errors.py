"""The one kind of error a user sees, the one kind of warning, and how memory that ran out is known."""

from __future__ import annotations

import re
import warnings

_UNUSUAL = re.compile(r"[^\n\t -~]")  # the others, mostly letters of other scripts, are looked at one by one


class UserError(ValueError):
    """One clear line: what was wrong, what was expected, what to do."""


class UserNotice(UserWarning):
    """One clear line about something that was done differently from what a user may expect; the work goes on."""


def printable(text: object) -> str:
    """Text in which nothing is a command to a terminal or turns the reading direction: such characters as ``\\u001b``, which in
    a JSON document mean the same.

    Line breaks and tabs stay.
    """
    text = str(text)
    if not _UNUSUAL.search(text):
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def warn(line: str) -> None:
    """Warns the user once per text; the command line prints it to stderr as ``l2p: warning: LINE``."""
    warnings.warn(line, UserNotice, stacklevel=3)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, of the machine or of an accelerator, in this error or in one that it was raised from."""
    while error is not None:
        text = str(error)
        told = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, RuntimeError) and any(line in text for line in told):
            return True
        error = error.__cause__
    return False
