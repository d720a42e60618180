"""An ablation: every row is checked first, done rows are kept, and the table says what the runs said."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from l2p.errors import UserError
from l2p.recipe import load_recipe
from l2p.training import ablation, distill

TEXT = """
name: tiny
output_dir: {out}
recipe: base.yaml
overrides: [match.enabled=false]
rows:
  plain: {{about: as it is, seeds: [0, 500]}}
  small: {{overrides: ["student.lora={{rank: 4}}"]}}
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "base.yaml").write_text("name: base\none_step: {steps: 7}\n")

    def plan(text=TEXT, overrides=(), only=(), seeds=()):
        path = tmp_path / "ablation.yaml"
        path.write_text(text.format(out=tmp_path / "out"))
        config = load_recipe(path, schema=ablation.AblationRecipe)
        return config, ablation.plan(config, path, overrides, only, seeds)

    return plan


def result(recipe, frechet=2.0):
    figures = {"frechet": frechet, "attribute_accuracy": 0.9, "psnr_to_teacher": 27.125, "recall": None}
    metrics = {"student": figures, "teacher": {"frechet": 1.5, "latency_ms": 200.0}, "settings": {}}
    stage = {"figures": {"seconds": 61.4, "steps": recipe.one_step.steps}}
    return {"metrics": metrics, "stages": {"lift": {"figures": {}}, "one_step": stage}}


def test_rows_are_recipes_with_one_thing_changed_in_folders_of_their_own(plan, tmp_path):
    _, tasks = plan(overrides=["one_step.batch_size=3"])
    assert [(task.row, task.seed) for task in tasks] == [("plain", 0), ("plain", 500), ("small", 0)]
    plain, other, small = (task.recipe for task in tasks)
    assert plain.one_step.steps == 7 and plain.one_step.batch_size == 3 and not plain.match.enabled
    assert Path(plain.output_dir) == tmp_path / "out" / "plain-0" and other.seed == 500
    assert plain.corpus.path == small.corpus.path != other.corpus.path
    assert plain.evaluation.cache == small.evaluation.cache == other.evaluation.cache
    assert plain.student.train_blocks == "all" and small.student.lora.rank == 4
    assert [task.row for task in plan(only=["small"])[1]] == ["small"]
    assert [(task.row, task.seed) for task in plan(seeds=[500])[1]] == [("plain", 500)]
    with pytest.raises(UserError, match="none of these rows has the seeds 7, 8"):
        plan(seeds=[7, 8])


@pytest.mark.parametrize(
    ("text", "overrides", "only", "message"),
    [
        (TEXT.replace("lora", "lore"), (), (), "row small: .*student.lor"),
        (
            TEXT,
            ["one_step.objectives={pair: {}}"],
            (),
            "row plain: .*unknown key one_step.objectives.pair: did you mean one_step.objectives.pairs",
        ),
        (TEXT, (), ["smal"], "has no row 'smal': expected some of plain, small"),
        (TEXT[: TEXT.index("rows")], (), (), "rows is empty"),
        (TEXT.replace("base.yaml", "bas.yaml"), (), (), "did you mean .*base.yaml"),
        (TEXT.replace("about", "abuot"), (), (), "abuot"),
    ],
)
def test_a_mistake_in_any_row_is_found_before_the_first_runs(plan, text, overrides, only, message):
    with pytest.raises(UserError, match=message) as error:
        plan(text, overrides, only)
    assert "\n" not in str(error.value)


def test_the_table_has_what_the_runs_found_and_what_failed(plan, tmp_path, monkeypatch):
    config, tasks = plan()
    ran = []

    def run(recipe, progress):
        ran.append(recipe.name)
        if recipe.name == "small-0":
            raise UserError("one_step stopped at step 3: the loss is nan")
        return result(recipe, 2.0 + recipe.seed / 1000)

    monkeypatch.setattr(distill, "run", run)
    out = ablation.run(tasks, config, progress=False)
    assert ran == ["plain-0", "plain-500", "small-0"] and out == tmp_path / "out"
    rows = ablation.read_results(out / "results.csv")
    assert [(row["row"], row["seed"]) for row in rows] == [
        ("(teacher)", "0"), ("(teacher)", "500"), ("plain", "0"), ("plain", "500"), ("small", "0")
    ]  # fmt: skip
    assert rows[2]["frechet"] == "2.00" and rows[3]["frechet"] == "2.50" and rows[2]["steps"] == "7"
    assert rows[2]["training_seconds"] == "61" and rows[2]["recall"] == "" and rows[2]["pairs"] == "2500"
    lines = (out / "table.md").read_text().splitlines()
    assert lines[2].startswith("| (teacher) | 2 | 1.50 (0.00) | - |")
    assert lines[3].startswith("| plain: as it is | 2 | 2.25 (0.50) | - |")
    assert lines[4].startswith("| small (failed: one_step stopped at step 3: the loss is nan) | 1 | - |")
    assert len({line.count("|") for line in lines}) == 1

    # A row done later joins those that are there; a failed one that succeeds is replaced.
    monkeypatch.setattr(distill, "run", lambda recipe, progress: result(recipe, 9.0))
    ablation.run(plan(only=["small"])[1], config, progress=False)
    assert [row["frechet"] for row in ablation.read_results(out / "results.csv")][2:] == [
        "2.00",
        "2.50",
        "9.00",
    ]


def test_the_command_checks_and_prints_the_plan(l2p, tmp_path):
    recipe = Path(__file__).parents[2] / "recipes" / "ablation.yaml"
    code, out, err = l2p(
        "ablate", recipe, "--dry-run", "--rows", "coupled", "mean-flow", "--out", tmp_path / "o"
    )
    assert (
        code == 0
        and err == ""
        and [line.split()[0] for line in out.splitlines()] == ["coupled"] * 3 + ["mean-flow"]
    )
    assert not (tmp_path / "o").exists()
    code, out, err = l2p("ablate", recipe, "--dry-run", "--set", "one_step.step=3")
    assert code == 2 and "row coupled: override 'one_step.step=3'" in err and err.count("\n") == 1


def test_rows_with_the_same_stage_train_it_once(new_run, straight, tmp_path):
    first = straight[0]
    out = tmp_path / "out"
    shutil.copytree(first.output_dir, out / "plain-0")
    second = replace(first, output_dir=str(out / "then-0"), match=replace(first.match, learning_rate=1e-5))
    other = replace(first, output_dir=str(out / "other-0"), one_step=replace(first.one_step, warmup_steps=1))
    for recipe in (second, other):
        ablation._share(ablation.Task("x", 0, recipe), out)
    assert [path.stem for path in sorted((out / "then-0" / "stages").glob("*.json"))] == ["lift", "one_step"]
    assert [path.stem for path in (out / "other-0" / "stages").glob("*.json")] == ["lift"]
    result = distill.run(second, progress=False)
    assert result["stages"]["one_step"]["figures"] == straight[1]["stages"]["one_step"]["figures"]
    assert Path(result["student"], "model.safetensors").is_file()


def test_rows_run_for_real_and_a_second_time_change_nothing(new_run, straight, tmp_path):
    """A done run, met again: its figures, its seconds, and not a step more."""
    recipe = straight[0]
    task = ablation.Task("plain", 0, recipe)
    config = ablation.AblationRecipe("x", str(tmp_path / "out"), "base.yaml", rows={"plain": ablation.Row()})
    ablation.run([task], config, progress=False)
    first = (tmp_path / "out" / "results.csv").read_text()
    ablation.run([task], config, progress=False)
    assert (tmp_path / "out" / "results.csv").read_text() == first
    (row,) = [r for r in ablation.read_results(tmp_path / "out" / "results.csv") if r["row"] == "plain"]
    assert row["steps"] == "10" and float(row["psnr"]) > 0 and float(row["latency_ms"]) > 0


def test_a_table_with_strange_line_ends_in_a_cell_is_read_whole(tmp_path):
    row = dict.fromkeys(ablation.COLUMNS, "1") | {ablation.COLUMNS[-1]: "a\u2028b\x85c\nd"}
    with open(tmp_path / "results.csv", "w", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, ablation.COLUMNS).writeheader()
        csv.DictWriter(file, ablation.COLUMNS).writerow(row)
    assert ablation.read_results(tmp_path / "results.csv") == [row]
