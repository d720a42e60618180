"""The one kind of error a user sees, the one kind of warning, and how memory that ran out is known."""

from __future__ import annotations

import warnings


class UserError(ValueError):
    """One clear line: what was wrong, what was expected, what to do."""


class UserNotice(UserWarning):
    """One clear line about something that was done differently from what a user may expect; the work goes on."""


def printable(text: object) -> str:
    """Text in which nothing is a command to a terminal or turns the reading direction: such characters as ``\\x1b``.

    Line breaks and tabs stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(text))


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
