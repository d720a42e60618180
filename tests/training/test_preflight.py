"""What can be known is refused before anything is drawn: the dry run builds student and objectives without weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from l2p.errors import UserError, UserNotice
from l2p.recipe import load_recipe
from l2p.training import distill
from l2p.training.preflight import check_build

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preflight")

    def plan(*overrides):
        return distill.plan(load_recipe(QUICKSTART, [f"output_dir={folder / 'run'}", *overrides]))

    return plan


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.head.num_blocks=0"], "has num_blocks 2, this student 0"),
        (["student.head.width=33"], "width=33 must be a multiple of head_dim=32"),
        (["student.head.fine_patch=3"], "fine_patch=3 must divide patch_size=16"),
        (["student.head.pretrained=/nope"], "no pretrained head in /nope"),
        (["student.patch_size=8"], "set student.patch_size=16"),
        (["teacher.height=120"], "teacher.height is 120, expected a multiple of 16.*set teacher.height=128"),
        (["lift.num_images=1"], "set lift.num_images=2 or more"),
        (["corpus.latents=false"], "corpus.latents is false"),
        (["match.objectives.pairs.perceptual_network=encoder@9"], "match: encoder@9: .* has no layer 9"),
        (["match.objectives.drift={features: transformer@77}"], "main blocks 0 to 5, got"),
        (["match.objectives.drift.temperatures=[]"], "temperatures is .., expected at least one item"),
        (["one_step.batch_size=9", "one_step.accumulate=2"], "one_step: batch_size is 9"),
        (["evaluation.clip=not a clip"], "no CLIP at 'not a clip'"),
        (["evaluation.prompts=/nope.txt"], "/nope.txt"),
        (["output_dir=/proc/x"], "cannot write to /proc"),
        (["teacher.path=runs/typo"], "teacher.path: no such file or directory: runs/typo"),
    ],
)
def test_a_dry_run_refuses_what_would_fail_later(plan, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        plan(*overrides)
    assert "\n" not in str(caught.value)


def test_lora_targets_that_the_core_lacks(plan):
    pytest.importorskip("peft")
    with pytest.raises(UserError, match="targets names 'zzz', which no linear layer of the core ends in"):
        plan("student.lora={targets: [zzz]}")


def test_a_published_teacher_is_known_by_its_sizes():
    recipe = load_recipe(QUICKSTART.with_name("z-image-turbo-1k.yaml"), ["student.head.width=33"])
    with pytest.raises(UserError, match="width=33 must be a multiple"):
        check_build(recipe)


def test_the_shipped_recipe_passes_and_draws_no_random_number(plan):
    import torch

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert [row["stage"] for row in plan()][0] == "lift"
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_recipe_whose_prompts_are_not_written_yet_can_be_looked_at(plan):
    with pytest.warns(UserNotice, match="corpus.prompts=nowhere.txt cannot be read yet, a run needs it"):
        assert plan("corpus.prompts=nowhere.txt")
