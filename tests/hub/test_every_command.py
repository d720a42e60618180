"""What takes a student takes its folder and its name on the Hub, with a revision, alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2p.errors import UserError
from l2p.hub.push import push
from l2p.review import serving
from l2p.students.io import read_config
from l2p.students.resolve import names_student, resolve_student, results_folder

NAME = "ann/tiny@v2"


@pytest.fixture
def published(hub, run_folder, tmp_path, monkeypatch):
    """A folder to work in; what is published is on a branch alone, so that no command may forget the revision."""
    push(run_folder / "student", "ann/tiny", revision="v2")
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture
def served(monkeypatch):
    calls = []
    monkeypatch.setattr(serving, "serve", lambda app, host, port, what: calls.append(what))
    return calls


def drawn(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_the_one_that_draws(l2p, published, run_folder):
    for student, out in ((run_folder / "student", "a.png"), (NAME, "b.png")):
        code, _, err = l2p("generate", student, "a lake", "--seed", 1, "--out", out, "--device", "cpu")
        assert code == 0, err
    assert np.array_equal(drawn("a.png"), drawn("b.png"))


def test_the_one_that_measures(l2p, published, monkeypatch):
    given = {}

    def measured(folder, **options):
        given.update(folder=folder, **options)
        return {"summary": {}, "alarms": [], "student": {}}

    monkeypatch.setattr("l2p.evaluation.saved.evaluate_folder", measured)
    code, _, err = l2p("evaluate", NAME)
    assert code == 0, err
    assert given["folder"].samefile(resolve_student(NAME))
    assert given["out"] == Path("evaluation-tiny@v2")  # here, and not in the Hub's cache


def test_the_ones_that_write(l2p, published, tmp_path):
    assert "48 x 32" in l2p("info", NAME)[1]
    code, _, err = l2p("export", NAME, "--to", "merged", "copy")
    assert code == 0, err
    code, _, err = l2p("push", NAME, "ann/again", "--dtype", "bf16")
    assert code == 0, err
    for student in ("copy", "ann/again"):
        assert (
            read_config(resolve_student(student))["teacher"] == read_config(resolve_student(NAME))["teacher"]
        )


def test_the_ones_that_serve(l2p, published, served, tmp_path):
    code, _, err = l2p("demo", NAME, "--device", "cpu")
    assert code == 0, err
    code, out, err = l2p("review", NAME, "--against", NAME, "--num-images", 2, "--device", "cpu")
    assert code == 0 and served == ["demo", "review"], err
    pictures = tmp_path / "review-tiny@v2" / "pictures"
    assert np.array_equal(*(drawn(pictures / side / "0001.png") for side in "ab"))
    code, _, err = l2p("review", NAME, "--summary")
    assert code == 2 and "no answer yet" in err


def test_the_one_that_grows(l2p, published, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("l2p.training.grow.run_task", lambda *_, **__: 0.0)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: grown\npictures: {sizes: [[64, 64]]}\n")
    more = ["factor=2", "head.width=32", "head.num_blocks=1", "terms.perceptual=0"]
    code, _, err = l2p("grow", recipe, f"student={NAME}", f"teacher={tiny_pipeline}", "threads=1", *more)
    assert code == 0, err
    grown = read_config(tmp_path / "runs" / "grown" / "student")
    assert grown["patch_size"] == 32 and grown["recipe"]["student"] == NAME


def test_teachers_and_students_of_a_name_are_told_apart(published, run_folder, tiny_pipeline):
    from tests.hub.local_hub import Repo

    published.repos["ann/teacher"] = Repo()
    published.repos["ann/teacher"].commit("main", {"model_index.json": b"{}"})
    assert names_student(NAME) and names_student(str(run_folder / "student"))
    assert (
        not names_student("ann/teacher") and not names_student(tiny_pipeline) and not names_student("nowhere")
    )
    with pytest.raises(UserError, match="is not on the Hub"):
        names_student("ann/nobody")


def test_results_lie_beside_a_folder_and_here_otherwise(published, run_folder, tmp_path):
    student = run_folder / "student"
    assert results_folder(str(student), "review") == run_folder.resolve() / "review-student"
    for name in (NAME, str(resolve_student(NAME))):
        assert results_folder(name, "review").parent.resolve() == tmp_path.resolve()
