"""Numbers on the command line, checked by the validator of all configurations as they are parsed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from l2p.config import ConfigError, Float, Int, shown, validate

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
