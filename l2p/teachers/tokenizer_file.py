"""Whether a ``tokenizer.json`` is one that reads a prompt in bounded time and memory, looked at before anything reads it.

The library runs whatever steps the file lists: 26 that write "a" as "aa" make 67 million letters of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.files import read_json

# Steps that keep a text's length within a small factor, and the factor of those that multiply it.
NORMALIZERS = {
    **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Nmt"), 1.0),
    **{"BertNormalizer": 1.0, "Precompiled": 1.0, "ByteLevel": 2.0, "Replace": 1.0, "Prepend": 1.0},
}
PRE_TOKENIZERS = {
    **dict.fromkeys(("BertPreTokenizer", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace"), 1.0),
    **dict.fromkeys(("Punctuation", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"), 1.0),
    "ByteLevel": 2.0,
}
POST_PROCESSORS = ("BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing")
MOST_GROWTH, MOST_STEPS, MOST_ADDED, MOST_PADDING = 16.0, 32, 4096, 2**16


def check_tokenizer_file(folder: Path) -> None:
    """Raises: UserError for a ``tokenizer.json`` with unknown steps, or with steps that blow a text up."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    found = read_json(path)
    try:
        growth = 1.0
        for name, known in (("normalizer", NORMALIZERS), ("pre_tokenizer", PRE_TOKENIZERS)):
            steps = list(_steps(found.get(name)))
            for step in steps:
                growth *= known[step["type"]] * _replaced(step)
            if len(steps) > MOST_STEPS:
                growth = float("inf")
        added = 0
        for step in _steps(found.get("post_processor")):
            if step["type"] not in POST_PROCESSORS:
                raise KeyError(step["type"])
            added += _added(step)
        padding = found.get("padding") or {}
        fixed = padding.get("strategy") or 0
        fixed = fixed.get("Fixed", 0) if isinstance(fixed, dict) else 0
        fixed = max(fixed, padding.get("pad_to_multiple_of") or 0)
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is broken or has steps of an unknown kind ({str(error)[:60]})") from None
    if growth > MOST_GROWTH or added > MOST_ADDED or fixed > MOST_PADDING:
        raise UserError(
            f"{path} would make a prompt many times longer, which no honest tokenizer does: take another"
        )


def _steps(step: Any) -> Iterator[dict[str, Any]]:
    """The steps in a step, sequences unrolled."""
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for key in ("normalizers", "pretokenizers", "processors"):
        for child in step.get(key) or ():
            yield from _steps(child)


def _replaced(step: dict[str, Any]) -> float:
    """How many times longer a step's replacement is than what it stands for."""
    if step["type"] == "Prepend":
        return 1.0 if len(step["prepend"]) <= MOST_STEPS else float("inf")
    if step["type"] != "Replace":
        return 1.0
    content, pattern = len(step["content"]), step["pattern"].get("String")
    if pattern is None:  # a regular expression may match nothing, before every letter
        return 1.0 + content
    return max(1.0, content / len(pattern)) if pattern else float("inf")


def _added(step: dict[str, Any]) -> int:
    if step["type"] != "TemplateProcessing":
        return 0
    longest = max((len(token["ids"]) for token in (step.get("special_tokens") or {}).values()), default=1)
    return longest * max(len(step.get("single") or ()), len(step.get("pair") or ()))


@contextmanager
def refusing_panics() -> Iterator[None]:
    """A failure inside tokenizers, which is no Exception, as a UserError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the tokenizer is broken ({' '.join(str(error).split())[:200]})") from None
