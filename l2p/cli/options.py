"""Options on the command line: numbers, checked by the validator of all configurations as they are parsed, and which options
a command reads in which of its modes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from l2p.config import ConfigError, Float, Int, shown, validate
from l2p.errors import UserError

SIDE = 8  # pixels; a side is a multiple of it
MAX_SIDE = 8192  # twice 4K


def _side(value: int) -> int:
    if not SIDE <= value <= MAX_SIDE or value % SIDE:
        near = min(max(SIDE, round(value / SIDE) * SIDE), MAX_SIDE)
        raise ValueError(f"expected a multiple of {SIDE} from {SIDE} to {MAX_SIDE}: try {near}")
    return value


def _noise_level(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError("expected a noise level from 0 (clean) to 1")
    return value


PictureSide = Annotated[Int, AfterValidator(_side)]
PictureSeed = Annotated[Int, Field(ge=0, le=2**63 - 10_001)]
PictureCount = Annotated[Int, Field(ge=1, le=10_000)]
PairCount = Annotated[Int, Field(ge=2, le=10**6)]
Port = Annotated[Int, Field(ge=1, le=65535)]
GpuCount = Annotated[Int, Field(ge=1, le=100_000)]
Guidance = Annotated[Float, Field(ge=1, le=1000)]  # of classifier-free guidance; 1 is none
NoiseLevel = Annotated[Float, AfterValidator(_noise_level)]
StepsOrNone = Annotated[Int, Field(ge=0, le=1000)]  # of a teacher; 0 leaves its sampling out
Seconds = Annotated[Float, Field(ge=0, le=10**6)]


def number_type(kind: Any) -> Callable[[str], Any]:
    """What argparse calls to read a number of an annotated kind, such as :data:`l2p.config.Threads`."""

    def read(text: str) -> Any:
        try:
            return validate(kind, _plain(text), "it")
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("it ")) from None

    return read


def numbers_type(kind: Any) -> Callable[[str], list[Any]]:
    """The same for a list such as ``1,4``; empty for no text."""

    def read(text: str) -> list[Any]:
        return [number_type(kind)(part.strip()) for part in text.split(",") if part.strip()]

    return read


def text_type(value: str) -> str:
    """What argparse calls to read a prompt or a name that may not be empty."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"is {shown(value)}, expected some text")
    return value


def _plain(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# --------------------------------------------------------------------------------------------------- modes


@dataclass(frozen=True)
class Mode:
    """A way to run a command.

    Attributes:
        name: in words, such as "a prompt".
        options: names, as the namespace has them, of options that only this mode and others that list them read.
    """

    name: str
    options: tuple[str, ...]


def check_modes(args: argparse.Namespace, modes: Collection[Mode], active: Collection[Mode]) -> None:
    """Refuse an option that was given and that no active mode reads. Options that no mode lists are read by all.

    Raises:
        UserError: names the option and the modes that read it.
    """
    for name, option in getattr(args, "given", {}).items():
        readers = [mode for mode in modes if name in mode.options]
        if readers and not any(mode in active for mode in readers):
            raise UserError(
                f"{option} goes with {' or '.join(mode.name for mode in readers)}, and would not be used here: leave it out"
            )


def check_alone(args: argparse.Namespace, *names: str) -> None:
    """Refuse options that contradict one another. Raises UserError where more than one of them was given."""
    found = [option for name, option in getattr(args, "given", {}).items() if name in names]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} contradict each other: give one of them")


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The arguments; ``given`` maps the name of each that was given to the option as it is written, or its metavar."""
    args = parser.parse_intermixed_args(words)
    nothing = object()
    actions = {a.dest: a for a in parser._actions if a.option_strings and a.default is not argparse.SUPPRESS}
    empty = {name: None if isinstance(a, argparse._AppendAction) else nothing for name, a in actions.items()}
    given = parser.parse_intermixed_args(words, argparse.Namespace(**empty))
    args.given = {
        name: action.option_strings[-1]
        for name, action in actions.items()
        if getattr(given, name) is not empty[name]
    }
    for action in parser._actions:
        if not action.option_strings and getattr(args, action.dest) not in (None, [], action.default):
            args.given[action.dest] = str(action.metavar or action.dest)
    return args
