"""Where a corpus's prompts come from: the captions of ``landscapes``, or the lines of a text file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from l2p.errors import UserError

LANDSCAPES = "landscapes"


def prompts_for(source: str | Path, indices: Iterable[int], seed: int = 0) -> list[str]:
    """The prompts of these samples.

    Args:
        source: "landscapes" (the caption of the scene of seed ``seed + index``), or a UTF-8 text file with one prompt
            a line; empty lines are skipped, and the file starts over when it is shorter than the corpus.
        indices: sample numbers, at least 0.

    Raises:
        UserError: the file is missing, is no text or holds no prompt.
    """
    if str(source) == LANDSCAPES:
        from l2p.landscapes import Scene, caption

        return [caption(Scene.from_seed(seed + index)) for index in indices]
    lines = _lines(Path(source))
    return [lines[index % len(lines)] for index in indices]


def fingerprint(source: str | Path, seed: int = 0) -> str:
    """Sha256 of the prompts: of the file's lines, or of the first captions, which change with the captions' code."""
    lines = prompts_for(LANDSCAPES, range(32), seed) if str(source) == LANDSCAPES else _lines(Path(source))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@lru_cache(maxsize=4)
def _read(path: Path, modified_ns: int) -> tuple[str, ...]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    return tuple(line for line in lines if line)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = _read(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise UserError(
            f"no prompts at {str(path)!r}: expected {LANDSCAPES!r} or a text file, one prompt a line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts in {path}: expected a UTF-8 text file ({error})") from None
    if not lines:
        raise UserError(f"{path} holds no prompt: write one a line")
    return lines
