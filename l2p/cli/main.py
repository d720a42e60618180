"""`l2p VERB ...`: finds the verb, and turns every foreseeable failure into one line on stderr.

Exit codes: 0 done, 1 `doctor` found something broken, a gate of `evaluate` failed or `plan` found what does not fit, 2 a mistake of the user or of the machine, 130 Ctrl-C, 143 SIGTERM.
A failure that is none of these is a bug, and shows its traceback; L2P_DEBUG=1 shows the traceback of all.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from l2p.cli.options import parse
from l2p.errors import UserError, UserNotice, out_of_memory
from l2p.terminal import clean, clean_streams

VERBS = {
    "distill": "a teacher goes in, a one-step pixel student and its report come out",
    "synthesize": "draw the corpus alone: prompts, filters, pictures, by one process or many",
    "plan": "count what a recipe's training needs on so many GPUs, and what to change",
    "grow": "a student to a larger patch and resolution",
    "generate": "draw pictures from prompts",
    "info": "what a student is",
    "teachers": "the families of teachers, and what each supports",
    "evaluate": "measure a student beside its teacher",
    "review": "let people judge pictures, blind and in pairs",
    "demo": "a local page to try a student",
    "bench": "time and memory of several paths, side by side",
    "push": "publish a student on the Hub",
    "pull": "fetch a student from the Hub",
    "import": "published weights (L2P, PiD) into a folder of this toolkit",
    "export": "write a student as a pipeline for diffusers",
    "recipes": "the recipes that come with l2p: list them, copy one",
    "doctor": "what is installed, what will be slow, and the fix",
    "ablate": "run a recipe once for each row of a table, and compare",
    "train-teacher": "train the bundled latent teacher",
    "train-head": "teach a patch head to decode, for students to start with",
    "decode": "latents, pictures or prompts to larger pictures",
    "evaluate-decoder": "measure a pixel diffusion decoder beside the VAE",
    "train-pid": "train a pixel diffusion decoder: latents to larger pictures",
    "train-judge": "train the judge that the evaluation asks",
}


class Parser(argparse.ArgumentParser):
    """Says in one line what it did not understand."""

    def error(self, message: str) -> NoReturn:
        checked = re.fullmatch(r"argument ([^:]+): (is .*)", message, re.DOTALL)  # by l2p.cli.options
        raise UserError(f"{checked[1]} {checked[2]}" if checked else f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    with clean_streams():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    verb: ModuleType | None = None
    debug = os.environ.get("L2P_DEBUG", "") not in ("", "0")
    if not debug:  # libraries talk to their developers; a user can act on none of it
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    warnings.formatwarning = _format_warning
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        _check_encoding(words)
        name, rest = _split(words)
        verb = import_module(f"l2p.cli.{name.replace('-', '_')}")
        parser = Parser(
            prog=f"l2p {name}",
            description=verb.__doc__,
            epilog=verb.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.configure(parser)
        code = verb.run(parse(parser, rest)) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as error:
        if debug:
            raise
        return _fail("stopped" + getattr(verb, "WHEN_STOPPED", ""), 128 + getattr(error, "signum", 2))
    except (
        BrokenPipeError
    ):  # the reader of our output, such as `head`, has gone: there is no one left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception as error:
        line = explain(error)
        if debug or line is None:
            raise
        return _fail(line, 2)


def _check_encoding(words: Sequence[str]) -> None:
    """Refuse what is no UTF-8: it could be neither read as a prompt nor printed."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"the argument {ascii(word)} is no UTF-8: give it in UTF-8") from None


def explain(error: Exception) -> str | None:
    """One line for an error that user or machine caused; None for a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device{_named(error)}: free some and run the same command again"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"file too large for this disk, or for `ulimit -f`{_named(error)}"
    if isinstance(error, PermissionError):
        return f"permission denied{_named(error)}"
    if isinstance(error, OSError) and error.strerror:  # the machine's: a disk that breaks names no file
        return f"{error.strerror.lower()}{_named(error)}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in (
        "l2p",
        "l2p_kernels",
    ):
        return (
            f"the package {error.name} is not installed: `l2p doctor` says what is missing and how to get it"
        )
    if out_of_memory(error):
        return "out of memory: take a smaller picture, a smaller batch_size or another device"
    return None


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if issubclass(category, UserNotice):
        return f"l2p: warning: {clean(' '.join(str(message).split()))}\n"
    return f"{filename}:{lineno}: {category.__name__}: {clean(message)}\n"


def _named(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _fail(line: str, code: int) -> int:
    print(f"l2p: {_rank()}{clean(line)}", file=sys.stderr)
    return code


def _rank() -> str:
    """The number of a process that was launched with others, in front of its line; "" for one alone."""
    launched = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or "1"
    return (
        f"rank {os.environ.get('RANK') or os.environ.get('SLURM_PROCID', '?')}: " if launched != "1" else ""
    )


def _split(argv: list[str]) -> tuple[str, list[str]]:
    """The verb and its arguments; prints the help or the version and exits where that was asked for."""
    verbs = "\n".join(f"  {name:<18}{line}" for name, line in VERBS.items())
    parser = Parser(
        prog="l2p",
        description="Distil a latent text-to-image model into a pixel-space student that paints in one step.",
        epilog=f"verbs:\n{verbs}\n\nl2p VERB --help says more, with examples; L2P_DEBUG=1 shows the traceback of an error.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="l2p [-h] [--version] VERB ...",
    )
    if argv and argv[0] in VERBS:
        return argv[0], argv[1:]
    if argv and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0], VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VERBS)}"
        raise UserError(f"no verb {argv[0]!r}: {hint}")
    parser.add_argument("--version", action="version", version=_version())
    parser.parse_args(argv or ["--help"])
    raise UserError("name a verb (see l2p --help)")


def _version() -> str:
    from l2p import __version__

    return f"l2p {__version__}"


if __name__ == "__main__":
    sys.exit(main())
