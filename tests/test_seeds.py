"""One table of seeds: no two uses meet, and nothing is trained on what measures it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from l2p.errors import UserError
from l2p.recipe import load_recipe
from l2p.seeds import SEEDS, check_seeds, derive_seed
from l2p.training import distill
from l2p.training.grow import GrowRecipe
from l2p.training.teacher import TeacherRecipe

RECIPES = Path(__file__).parents[1] / "recipes"


def test_no_two_uses_share_a_seed():
    for a, b in combinations(SEEDS.values(), 2):
        assert a.stop <= b.start or b.stop <= a.start


def test_a_measurement_keeps_to_its_range():
    assert check_seeds("evaluation", 7_000_000, 500_000, "x") == range(7_000_000, 7_500_000)
    with pytest.raises(UserError, match="evaluation.seed leads to .* 7499999 to 7500000, beyond"):
        check_seeds("evaluation", 7_499_999, 2, "evaluation.seed")


@pytest.mark.parametrize("first", [7_000_000, 7_499_999, 6_999_999, 9_999_950])
def test_training_meets_no_measurement(first):
    with pytest.raises(UserError, match="judged on what it was trained on"):
        check_seeds("corpus", first, 2, "seed")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.seed=499900", "evaluation.seed leads to the seeds 7499900"),
        ("seed=6999999", "seed leads the corpus to the seeds 6999999"),
    ],
)
def test_a_recipe_whose_seeds_meet_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        distill.check_stages(load_recipe(RECIPES / "quickstart.yaml", [override]))


def test_recipes_of_teachers_and_grown_students_too():
    with pytest.raises(UserError, match="pictures.first_seed leads the training"):
        load_recipe(RECIPES / "teacher-landscapes.yaml", ["pictures.first_seed=7000000"], TeacherRecipe)
    with pytest.raises(UserError, match="pictures.first_scene leads the grown student"):
        load_recipe(RECIPES / "landscapes-512.yaml", ["pictures.first_scene=7400000"], GrowRecipe)


def test_a_derived_seed_depends_on_its_names_alone():
    assert derive_seed(0, "match", 4) == derive_seed(0, "match", 4) < 2**63
    assert len({derive_seed(0, "match", 4), derive_seed(0, "match", 5), derive_seed(1, "match", 4)}) == 3
