"""What makes a prompt unfit for a corpus, and a count of what was dropped for it.

Near duplicates are found by MinHash (Broder 1997) with locality-sensitive hashing from `datasketch`, and then compared
exactly: Jaccard similarity of the sets of five-character shingles. Languages are told by `py3langid`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from l2p.errors import UserError
from l2p.extras import install_hint
from l2p.recipe import PromptFilters
from l2p.texts import read_lines

SHINGLE = 5  # characters
PERMUTATIONS = 128
SURE = 0.9  # probability from which another language is believed: short prompts are hard to tell
LETTERS = 0.5  # share of a prompt's characters that must be letters or spaces
EXAMPLES = 5  # dropped prompts a reason that a report shows
REASONS = ("format", "length", "language", "blocked term", "duplicate", "near duplicate")

_FORMAT = (
    (re.compile(r"https?://|www\.", re.IGNORECASE), "holds an address of the web"),
    (re.compile(r"\{\w*\}|\[(?:insert|your)[^\]]*\]|<\w[^<>]*>"), "holds a slot that nobody filled"),
    (re.compile(r"(.)\1{9,}"), "repeats one character"),
)


class Filters:
    """Judges prompts one after the other; remembers those it kept, for duplicates.

    Args:
        config: which filters, and how strict.

    Raises:
        UserError: a package that a filter needs is not installed, the language is unknown, or the file of blocked
            terms cannot be read.
    """

    def __init__(self, config: PromptFilters) -> None:
        self.config = config
        self._kept: list[str] = []
        self._seen: dict[str, int] = {}  # what was kept, bare of case and punctuation -> its place
        self._blocked = _blocked(config)
        self._language = _language_judge(config.language) if config.language else None
        self._index = _NearTexts(config.near_duplicates) if config.near_duplicates < 1 else None

    def __call__(self, prompt: str) -> tuple[str, str] | None:
        """Why `prompt` is dropped: one of ``REASONS``, and what exactly; None where it is kept."""
        return (
            self._format(prompt)
            or self._length(prompt)
            or (self._language and self._language(prompt))
            or self._blocked_term(prompt)
            or self._duplicate(prompt)
        )

    def _format(self, prompt: str) -> tuple[str, str] | None:
        if any(unicodedata.category(sign) in ("Cc", "Cs", "Co") for sign in prompt):
            return "format", "holds a control character"
        for pattern, said in _FORMAT:
            if found := pattern.search(prompt):
                return "format", f"{said}: {found[0][:40]}"
        letters = sum(sign.isalpha() or sign.isspace() for sign in prompt)
        if letters < LETTERS * len(prompt):
            return "format", f"{letters} of {len(prompt)} characters are letters"
        return None

    def _length(self, prompt: str) -> tuple[str, str] | None:
        words = len(prompt.split())
        if not self.config.min_words <= words <= self.config.max_words:
            return "length", f"{words} words"
        return None

    def _blocked_term(self, prompt: str) -> tuple[str, str] | None:
        found = self._blocked and self._blocked.search(prompt.casefold())
        return ("blocked term", found[0]) if found else None

    def _duplicate(self, prompt: str) -> tuple[str, str] | None:
        bare = " ".join(re.findall(r"\w+", prompt.casefold()))
        if bare in self._seen:
            return "duplicate", self._kept[self._seen[bare]]
        if self._index is not None:
            shingles = shingles_of(bare)
            sketch = self._index.sketch(shingles)
            for place in sorted(self._index.query(sketch)):
                similarity = jaccard(shingles, shingles_of(self._index.texts[place]))
                if similarity >= self.config.near_duplicates:
                    return "near duplicate", f"{similarity:.2f} like {self._kept[place]}"
            self._index.insert(bare, sketch)
        self._seen[bare] = len(self._kept)
        self._kept.append(prompt)
        return None


def shingles_of(text: str) -> set[str]:
    """All runs of ``SHINGLE`` characters; a shorter text is one of its own."""
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """Size of the intersection over that of the union."""
    return len(one & other) / len(one | other)


class _NearTexts:
    """Texts by their MinHash; a query gives the places of those that may be alike."""

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ModuleNotFoundError:
            raise UserError(
                f"corpus.filters.near_duplicates needs datasketch: {install_hint('corpus')}, or set it to 1"
            ) from None
        # Candidates are compared exactly afterwards: rather too many of them than one too few.
        self._lsh = MinHashLSH(
            threshold=max(0.05, threshold - 0.1), num_perm=PERMUTATIONS, weights=(0.2, 0.8)
        )
        self._new = MinHash
        self.texts: list[str] = []

    def sketch(self, shingles: set[str]) -> Any:
        sketch = self._new(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([shingle.encode() for shingle in shingles])
        return sketch

    def query(self, sketch: Any) -> list[int]:
        return self._lsh.query(sketch)

    def insert(self, text: str, sketch: Any) -> None:
        self._lsh.insert(len(self.texts), sketch)
        self.texts.append(text)


def _blocked(config: PromptFilters) -> re.Pattern[str] | None:
    """Whole words or phrases, whatever their case."""
    terms = list(config.blocked_terms)
    if config.blocked_file is not None:
        try:
            terms += read_lines(config.blocked_file)
        except UserError as error:
            raise UserError(f"corpus.filters.blocked_file: {error}") from None
    terms = sorted({" ".join(term.casefold().split()) for term in terms} - {""}, key=len, reverse=True)
    if not terms:
        return None
    return re.compile(
        r"(?<!\w)(?:" + "|".join(r"\s+".join(map(re.escape, t.split())) for t in terms) + r")(?!\w)"
    )


def _language_judge(language: str) -> Any:
    try:
        from py3langid import langid
    except ModuleNotFoundError:
        raise UserError(f"corpus.filters.language needs py3langid: {install_hint('corpus')}") from None
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    known = identifier.labels
    if language not in known:
        raise UserError(
            f"corpus.filters.language is {language!r}, expected one of {', '.join(sorted(known))}"
        )

    def judge(prompt: str) -> tuple[str, str] | None:
        found, probability = identifier.classify(prompt)
        return (
            ("language", f"{found} ({probability:.2f})")
            if found != language and probability >= SURE
            else None
        )

    return judge


class Report:
    """Counts and examples of what was dropped, and every dropped prompt with its reason."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.dropped: list[dict[str, str]] = []

    def sort(self, prompts: Iterable[str], filters: Filters | None, wanted: int | None = None) -> None:
        """Take prompts, in their order, until `wanted` are kept."""
        for prompt in prompts:
            if wanted is not None and len(self.kept) >= wanted:
                return
            prompt = " ".join(prompt.split())
            why = filters(prompt) if filters is not None else None
            if why is None:
                self.kept.append(prompt)
            else:
                self.dropped.append({"prompt": prompt, "reason": why[0], "detail": why[1]})

    def summary(self) -> dict[str, Any]:
        """``kept``, and for each reason of ``REASONS`` that occurred ``count`` and ``examples``."""
        counts = Counter(row["reason"] for row in self.dropped)
        examples: dict[str, Sequence[Any]] = {
            reason: [row for row in self.dropped if row["reason"] == reason][:EXAMPLES] for reason in counts
        }
        return {
            "kept": len(self.kept),
            "dropped": {
                reason: {"count": counts[reason], "examples": examples[reason]}
                for reason in REASONS
                if counts[reason]
            },
        }
