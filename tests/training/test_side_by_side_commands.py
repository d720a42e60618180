"""Commands started several times in one folder: one runs, or all share; nothing is lost and nothing crashes.

The processes are real ones, forked so that each starts at once; what takes long in a command is replaced by a wait.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from l2p.errors import UserError
from l2p.files import write_json
from l2p.locks import InUse, locked
from l2p.recipe import CorpusConfig, Recipe
from l2p.training import ablation, distill
from l2p.training.run_folder import RunFolder

FORK = multiprocessing.get_context("fork")


def all_at_once(work, count: int) -> list[str]:
    """Run ``work(number)`` in so many processes that begin together; what each returned, or the error it raised."""
    barrier, answers = FORK.Barrier(count), FORK.Queue()

    def one(number: int) -> None:
        barrier.wait()
        try:
            answers.put((number, work(number) or "done"))
        except Exception as error:
            answers.put((number, f"{type(error).__name__}: {error}"))

    started = [FORK.Process(target=one, args=(number,), daemon=True) for number in range(count)]
    for process in started:
        process.start()
    found = dict(answers.get(timeout=120) for _ in started)
    for process in started:
        process.join()
    return [found[number] for number in range(count)]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """An ablation of 20 rows of two seeds, whose runs take their locks and a moment, and nothing else."""

    def run(recipe, progress):
        with RunFolder(recipe.output_dir, {}).locked(), locked(tmp_path / recipe.corpus.path, "corpus.path"):
            time.sleep(1.0 if recipe.output_dir.endswith("row0-0") else 0.01)
        stage = {"figures": {"seconds": 1.0, "steps": 1}}
        return {"metrics": {"student": {"frechet": 1.0}, "teacher": {}}, "stages": {"one_step": stage}}

    monkeypatch.setattr(distill, "run", run)
    monkeypatch.setattr(ablation, "RETRY_SECONDS", 0.02)
    base, out = Recipe(name="base"), tmp_path / "out"
    return [
        ablation.Task(
            f"row{row}",
            seed,
            replace(base, output_dir=f"{out}/row{row}-{seed}", corpus=CorpusConfig(path=f"corpus-{seed}")),
        )
        for row in range(20)
        for seed in (0, 500)
    ]


def table(tmp_path, tasks, shares) -> list[dict[str, str]]:
    rows = {task.row: ablation.Row() for task in tasks}
    config = ablation.AblationRecipe("x", str(tmp_path / "out"), "base.yaml", rows=rows)

    def work(number: int) -> None:
        ablation.run(shares[number], config, progress=False)

    assert all_at_once(work, len(shares)) == ["done"] * len(shares)
    found = ablation.read_results(tmp_path / "out" / "results.csv")
    assert [row["error"] for row in found if row["error"]] == []
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []
    return found


def test_ablations_of_other_rows_side_by_side_lose_no_row_and_fail_none(tasks, tmp_path):
    rows = table(tmp_path, tasks, [tasks[i::4] for i in range(4)])
    wanted = {(task.row, str(task.seed)) for task in tasks} | {("(teacher)", "0"), ("(teacher)", "500")}
    assert {(row["row"], row["seed"]) for row in rows} == wanted and len(rows) == len(wanted) == 42


def test_the_same_ablation_twice_waits_and_says_for_whom(tasks, tmp_path, monkeypatch):
    console = Console(file=(tmp_path / "said").open("a", buffering=1), width=1000)
    monkeypatch.setattr(ablation, "CONSOLE", console)
    assert len(table(tmp_path, tasks, [tasks, tasks])) == 42
    said = (tmp_path / "said").read_text()
    assert "waits: " in said and "is in use by process" in said and "failed" not in said


def test_an_ablation_under_torchrun_is_refused(tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "2")
    config = ablation.AblationRecipe("x", str(tmp_path / "out"), "base.yaml")
    with pytest.raises(UserError, match="start it without torchrun"):
        ablation.run(tasks, config)


def test_of_distillations_in_one_folder_exactly_one_runs(recipe, monkeypatch, tmp_path):
    def run(context, resume):
        time.sleep(1)
        return {"pid": os.getpid()}

    monkeypatch.setattr(distill, "_run", run)
    for _ in range(3):
        found = all_at_once(lambda _: str(distill.run(recipe, progress=False)["pid"]), 5)
        (winner,) = [answer for answer in found if answer.isdecimal()]
        refused = [answer for answer in found if not answer.isdecimal()]
        assert all(
            answer.startswith(InUse.__name__) and f"in use by process {winner}" in answer
            for answer in refused
        ), found


def test_of_evaluations_into_one_folder_one_runs_and_the_others_say_so(tmp_path, monkeypatch):
    from l2p.cli.main import main
    from l2p.evaluation import pictures

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / name / "0.png")

    def evaluate(out, **_):
        (out / "entered").open("x")  # fails where another has been here
        time.sleep(1)
        metrics = {"summary": {}, "alarms": []}
        write_json(out / "metrics.json", metrics)
        return metrics

    monkeypatch.setattr(pictures, "evaluate_pictures", evaluate)
    command = [
        "evaluate",
        str(tmp_path / "a"),
        "--against",
        str(tmp_path / "b"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert sorted(all_at_once(lambda _: f"exit {main(command)}", 4)) == ["exit 0"] + ["exit 2"] * 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["entered", "metrics.json"]
