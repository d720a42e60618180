"""Kappas against the textbooks, win rates by hand, the heat map where the boxes were."""

import json

import numpy as np
import pytest
from PIL import Image

from l2p.errors import UserError
from l2p.review.agreement import cohen_kappa, fleiss_kappa
from l2p.review.answers import Answer, Answers, Box
from l2p.review.summary import CELLS, heat_map, summarize


def test_cohen_in_the_textbook_example():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa([1, 2, 1], [1, 2, 1]) == 1 and cohen_kappa([1, 2], [2, 1]) == -1
    assert cohen_kappa([1, 1], [1, 1]) is None
    with pytest.raises(ValueError, match="equally long"):
        cohen_kappa([1], [1, 2])


def test_fleiss_in_his_own_example():
    # ten subjects, fourteen raters, five categories: 0.210
    table = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    rows = [[category for category, n in enumerate(counts) for _ in range(n)] for counts in table]
    assert fleiss_kappa(rows) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([["a", "a", "a"], ["b", "b", "b"]]) == 1 and fleiss_kappa([["a", "a"]]) is None
    with pytest.raises(ValueError, match="at least 2"):
        fleiss_kappa([["a"], ["b"]])


def test_the_heat_is_where_the_boxes_were():
    left_half = Answer(
        "0", "a", "a", [Box("a", 0, 0, 0.5, 1), Box("a", 0.25, 0, 0.25, 1)]
    )  # overlapping: counts once
    corner = Answer("1", "a", "a", [Box("a", 0, 0, 0.25, 0.25), Box("b", 0.5, 0.5, 0.5, 0.5)])
    heat = heat_map([left_half, corner], "a")
    quarter, half = CELLS // 4, CELLS // 2
    assert (heat[:quarter, :quarter] == 1).all() and (heat[quarter:, :half] == 0.5).all()
    assert heat[:, half:].max() == 0
    assert heat_map([left_half, corner], "b").sum() == pytest.approx(0.5 * half * half)
    assert heat_map([], "a").max() == 0


def test_a_review_is_summed_up(review, tmp_path):
    folder = tmp_path / "review"
    with pytest.raises(UserError, match="holds no answer yet"):
        summarize(folder)
    answers = Answers(folder / "answers")
    for k, (ann, bob) in enumerate((("a", "a"), ("a", "tie"), ("b", "b"), ("a", "b"))):
        answers.add("Ann", Answer(f"{k:04d}", ann, "a", [Box("b", 0.5, 0.5, 0.5, 0.5)]))
        answers.add("Bob", Answer(f"{k:04d}", bob, "a"))
    summary = summarize(folder)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert (summary["a"], summary["b"], summary["reviewers"]) == ("new", "old", {"Ann": 4, "Bob": 4})
    follows = summary["follows"]
    assert (follows["wins"], follows["losses"], follows["ties"]) == (4, 3, 1)
    assert follows["win_rate"] == pytest.approx(4.5 / 8) and follows["kappa_kind"] == "cohen"
    assert follows["interval"][0] < 0.5 < follows["interval"][1]
    # agreed on 2 of 4; by chance (3 * 1 + 1 * 2 + 0 * 1) / 16
    assert follows["kappa"] == pytest.approx((0.5 - 5 / 16) / (1 - 5 / 16))
    assert summary["real"]["win_rate"] == 1 and summary["real"]["kappa"] is None
    assert summary["boxes"] == {"a": 0, "b": 4}
    heat = np.asarray(Image.open(folder / "heat-b.png")).astype(int)
    assert heat[192, 192, 0] - heat[192, 192, 2] > 100 > abs(heat[64, 64, 0] - heat[64, 64, 2])
    answers.add("Cem", Answer("0000", "a", "a"))
    assert summarize(folder)["follows"]["kappa_kind"] == "fleiss"
    with pytest.raises(UserError, match="holds no review"):
        summarize(tmp_path)
