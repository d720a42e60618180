"""What the reviewers found: win rates with Wilson's interval, agreement, and where they marked inventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2p.errors import UserError
from l2p.evaluation.bootstrap import wilson_interval
from l2p.files import atomic_path, write_json
from l2p.images import read_picture
from l2p.review.agreement import cohen_kappa, fleiss_kappa
from l2p.review.answers import QUESTIONS, Answer, Answers
from l2p.review.pairs import Review, read_review

CELLS = 64  # a side of the heat map


def summarize(folder: str | Path) -> dict[str, Any]:
    """Count the answers in a review's folder; write ``summary.json`` and ``heat-a.png``, ``heat-b.png`` beside them.

    Returns:
        ``a``, ``b`` (names), ``reviewers`` (name to number of answers), for each question ``win_rate`` of a (ties count
        half), its 95 % ``interval``, ``wins``, ``losses``, ``ties``, ``kappa`` and ``kappa_kind``; ``boxes`` by picture.

    Raises:
        UserError: no review there, or no answer yet.
    """
    folder = Path(folder)
    review = read_review(folder)
    answers = Answers(folder / "answers").all()
    if not answers:
        raise UserError(
            f"{folder} holds no answer yet: run l2p review without --summary and judge some pairs"
        )
    given = [answer for of_one in answers.values() for answer in of_one.values()]
    summary: dict[str, Any] = {
        "a": review.a,
        "b": review.b,
        "pairs": len(review.pairs),
        "reviewers": {name: len(of_one) for name, of_one in answers.items()},
        "boxes": {side: sum(box.of == side for answer in given for box in answer.boxes) for side in "ab"},
    }
    for question in QUESTIONS:
        votes = [getattr(answer, question) for answer in given]
        wins, losses = votes.count("a"), votes.count("b")
        score = wins + (len(votes) - wins - losses) / 2
        summary[question] = {
            "win_rate": score / len(votes),
            "interval": list(wilson_interval(score, len(votes))),
            "wins": wins,
            "losses": losses,
            "ties": len(votes) - wins - losses,
            **_agreement(answers, question),
        }
    for side in "ab":
        _draw_heat(review, heat_map(given, side), side, folder / f"heat-{side}.png")
    write_json(folder / "summary.json", summary)
    return summary


def heat_map(answers: list[Answer], side: str) -> NDArray[np.float64]:
    """Share of the answers whose boxes on picture ``side`` cover each cell, [CELLS, CELLS] in [0, 1]."""
    heat = np.zeros((CELLS, CELLS))
    middle = (np.arange(CELLS) + 0.5) / CELLS
    for answer in answers:
        covered = np.zeros((CELLS, CELLS), bool)
        for box in answer.boxes:
            if box.of == side:
                rows = (middle >= box.y) & (middle < box.y + box.h)
                columns = (middle >= box.x) & (middle < box.x + box.w)
                covered |= rows[:, None] & columns
        heat += covered
    return heat / max(1, len(answers))


def _agreement(answers: dict[str, dict[str, Answer]], question: str) -> dict[str, Any]:
    """Kappa over the pairs that all reviewers judged; None where there are too few of either."""
    shared = set.intersection(*(set(of_one) for of_one in answers.values()))
    rows = [[getattr(of_one[pair], question) for of_one in answers.values()] for pair in sorted(shared)]
    kind = "cohen" if len(answers) == 2 else "fleiss"
    if len(answers) < 2 or len(rows) < 2:
        return {"kappa": None, "kappa_kind": kind, "shared_pairs": len(rows)}
    kappa = cohen_kappa(*zip(*rows, strict=True)) if kind == "cohen" else fleiss_kappa(rows)
    return {"kappa": kappa, "kappa_kind": kind, "shared_pairs": len(rows)}


def _draw_heat(review: Review, heat: NDArray[np.float64], side: str, path: Path) -> None:
    """The heat map over the mean of the side's pictures."""
    from PIL import Image

    total = np.zeros((256, 256, 3))
    for pair in review.pairs:
        picture = Image.fromarray(read_picture(getattr(pair, side)))
        total += np.asarray(picture.resize((256, 256)), float)
    mean = (total / len(review.pairs)).mean(2, keepdims=True)
    strength = np.kron(heat, np.ones((256 // CELLS, 256 // CELLS)))[..., None] / max(heat.max(), 1e-9)
    drawn = mean * (1 - 0.7 * strength) + np.array([255.0, 60.0, 0.0]) * 0.7 * strength
    with atomic_path(path) as partial:
        Image.fromarray(drawn.clip(0, 255).round().astype(np.uint8)).save(partial)
