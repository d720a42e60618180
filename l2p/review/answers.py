"""What reviewers said, on the disk before the next pair is shown: one file of lines a reviewer, only ever appended to.

A line is an answer, or the taking back of one. After a crash the last line may be cut short; it is then passed over, and
the pair it was about is asked again.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.files import append_line

CHOICES = ("a", "b", "tie")
QUESTIONS = ("follows", "real")
MAX_REVIEWERS = 1000
MAX_BYTES = 16 * 1024**2  # of one reviewer's answers


@dataclass(frozen=True)
class Box:
    """A rectangle on picture ``of`` ("a" or "b"); left, top, width and height as shares of the picture."""

    of: str
    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True)
class Answer:
    """One reviewer on one pair: which picture follows the prompt, which looks more real, and what was invented.

    ``follows`` and ``real`` are "a", "b" or "tie".
    """

    pair: str
    follows: str
    real: str
    boxes: list[Box] = field(default_factory=list)


class Answers:
    """The answers in a folder; safe for several reviewers at once, each in a file of their own."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()

    def add(self, reviewer: str, answer: Answer) -> None:
        """Returns once the answer is on the disk."""
        self._append(reviewer, asdict(answer))

    def undo(self, reviewer: str) -> Answer | None:
        """Take the reviewer's last answer back, and return it; None if there is none."""
        with self._lock:
            kept = list(self.of(reviewer).values())
            if kept:
                self._write(reviewer, {"undo": kept[-1].pair})
            return kept[-1] if kept else None

    def of(self, reviewer: str) -> dict[str, Answer]:
        """Pair to answer, in the order in which they were given."""
        return _replay(self._path(reviewer))

    def all(self) -> dict[str, dict[str, Answer]]:
        """Reviewer to pair to answer; reviewers with no answer are left out."""
        found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            answers = _replay(path)
            if answers:
                found[_name(path)] = answers
        return found

    def _append(self, reviewer: str, value: dict[str, Any]) -> None:
        with self._lock:
            self._write(reviewer, value)

    def _write(self, reviewer: str, value: dict[str, Any]) -> None:
        path = self._path(reviewer)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.is_file()
        if new and sum(1 for _ in self.folder.glob("*.jsonl")) >= MAX_REVIEWERS:
            raise UserError(f"this review has {MAX_REVIEWERS} reviewers already: use one of their names")
        if not new and path.stat().st_size > MAX_BYTES:
            raise UserError("this reviewer has answered and taken back too often: choose another name")
        append_line(path, json.dumps({"reviewer": reviewer, **value}, ensure_ascii=False), sync=True)

    def _path(self, reviewer: str) -> Path:
        return self.folder / f"{file_name(reviewer)}.jsonl"


def file_name(reviewer: str) -> str:
    """A harmless name for a reviewer's file. Raises UserError for an empty or very long name."""
    name = reviewer.strip()
    if not name or len(name) > 80:
        raise UserError("a reviewer's name has 1 to 80 characters")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{slug or 'reviewer'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _lines(path: Path) -> list[dict[str, Any]]:
    if path.is_symlink():  # it could lead to any file of this machine
        raise UserError(f"{path} is a link, expected a file of answers: remove it")
    if not path.is_file():
        return []
    values = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue  # the line that a crash cut short
        if isinstance(value, dict):
            values.append(value)
    return values


def _replay(path: Path) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    for value in _lines(path):
        try:
            if "undo" in value:
                answers.pop(value["undo"], None)
            elif value.get("pair"):
                answers.pop(value["pair"], None)  # an answer given anew is the last one
                answers[value["pair"]] = _answer(value)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} holds a line that is no answer: mend or delete it") from error
    return answers


def _answer(value: dict[str, Any]) -> Answer:
    """Raises KeyError, TypeError or ValueError for what `Answers.add` did not write."""
    votes = {question: value[question] for question in QUESTIONS}
    if not set(votes.values()) <= set(CHOICES):
        raise ValueError(f"expected {CHOICES}, got {votes}")
    return Answer(value["pair"], **votes, boxes=[Box(**box) for box in value["boxes"]])


def _name(path: Path) -> str:
    return next((str(value["reviewer"]) for value in _lines(path) if "reviewer" in value), path.stem)
