"""The gate: what it understands, what it finds, and what it says of a figure that is not there."""

import pytest

from l2p.errors import UserError
from l2p.evaluation.gate import Condition

METRICS = {
    "summary": {"speedup": 20.0, "psnr_to_teacher": None},
    "student": {"seam_index": 1.25, "attribute_accuracy": 0.93, "frechet": None, "seams": {"strength": 1.6}},
    "teacher": {"frechet": 7.0},
}


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("seam_index>1.1", True),
        ("seam_index > 1.3", False),
        ("attribute_accuracy<0.9", False),
        ("attribute_accuracy<=.93", True),
        ("seams.strength>=1.5e0", True),
        ("teacher.frechet>5", True),
        ("speedup<10", False),
    ],
)
def test_conditions(text, fails):
    line = Condition.parse(text).failure(METRICS)
    assert (line is not None) == fails


def test_the_line_names_the_figure():
    assert Condition.parse("seam_index>1.1").failure(METRICS) == "seam_index>1.1: seam_index is 1.25"


@pytest.mark.parametrize(
    "text", ["seam_index", "seam_index=1", "1>seam_index", "a>b", "", "x > 1; import os"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(UserError, match="is no condition"):
        Condition.parse(text)


def test_missing_figures_are_told_apart_from_unknown_ones():
    with pytest.raises(UserError, match="did not measure it"):
        Condition.parse("frechet>1").failure(METRICS)
    with pytest.raises(UserError, match="did you mean seam_index?"):
        Condition.parse("seam_indx>1").failure(METRICS)
    with pytest.raises(UserError, match="expected one of"):
        Condition.parse("zzzzzz>1").failure(METRICS)
