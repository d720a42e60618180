import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import get_type_hints

import pytest

from l2p.artifacts import differences, read_sealed
from l2p.errors import UserError
from l2p.files import read_json, write_json
from l2p.recipe import Recipe
from l2p.training.grow import GrowFolder, GrowRecipe
from l2p.training.head import HeadFolder, HeadRecipe
from l2p.training.judge import JudgeFolder, JudgeRecipe
from l2p.training.pid import PidFolder, PidRecipe
from l2p.training.run_folder import MARK, RunFolder, settings_of
from l2p.training.teacher import TeacherFolder, TeacherRecipe


def recipe(**changed):
    return Recipe(name="x", output_dir="unused", **changed)


def test_a_stage_depends_on_what_it_and_the_stages_before_it_read():
    before, after = recipe(), recipe()
    after.one_step.learning_rate = 5e-4
    after.match.preview_every = 7
    after.evaluation.num_images = 3
    for stage in ("lift", "corpus", "transfer"):
        assert settings_of(stage, asdict(before)) == settings_of(stage, asdict(after))
    told = differences(settings_of("match", asdict(before)), settings_of("match", asdict(after)))
    assert told == "one_step.learning_rate: 0.001 there, 0.0005 here"


def test_a_stage_that_is_off_has_no_settings():
    before, after = recipe(), recipe()
    after.transfer.steps = 7  # off by default
    assert differences(settings_of("match", asdict(before)), settings_of("match", asdict(after))) == ""
    after.transfer.enabled = True
    assert "transfer" in differences(
        settings_of("match", asdict(before)), settings_of("match", asdict(after))
    )


def test_a_done_stage_is_known_and_changed_settings_are_refused_by_name(tmp_path):
    folder = RunFolder(tmp_path, asdict(recipe()))
    assert folder.summary("one_step") is None
    folder.finish("one_step", 1.5, {"steps": 4}, ["look"])
    assert RunFolder(tmp_path, asdict(recipe())).summary("one_step")["figures"] == {"steps": 4}
    changed = RunFolder(tmp_path, asdict(recipe(seed=3)))
    with pytest.raises(
        UserError, match=r"one_step stage with other settings \(seed: 0 there, 3 here\).*--resume never"
    ):
        changed.summary("one_step")
    folder.forget_from("lift")
    assert folder.summary("one_step") is None


@pytest.mark.parametrize(
    ("key", "value", "stage"),
    [
        ("evaluation.peak_memory", False, "evaluation"),
        ("evaluation.latency_runs", 9, "evaluation"),
        ("lift.min_r2", 0.9, "lift"),
        ("corpus.image_format", "webp", "corpus"),
        ("corpus.latents", False, "corpus"),
        ("one_step.objectives", {"perceptual": {"path": "b"}}, "one_step"),
    ],
)
def test_keys_that_change_what_is_left_are_compared_and_older_markers_still_serve(
    tmp_path, key, value, stage
):
    written, now = asdict(recipe()), asdict(recipe())
    section, name = key.split(".")
    if name == "objectives":
        written[section][name] = {"perceptual": {"path": "a"}}
    now[section][name] = value
    before = RunFolder(tmp_path, written)
    with pytest.raises(UserError, match=f"{key}"):
        RunFolder(tmp_path, now).check_settings(stage, before.settings(stage))
    if name != "objectives":
        older = {k: v for k, v in before.settings(stage).items() if k not in RunFolder.recorded_later}
        before.check_settings(stage, older)


def test_every_key_without_effect_is_one_of_its_recipe():
    kinds = {
        RunFolder: Recipe, TeacherFolder: TeacherRecipe, GrowFolder: GrowRecipe, HeadFolder: HeadRecipe,
        JudgeFolder: JudgeRecipe, PidFolder: PidRecipe,
    }  # fmt: skip
    for folder, schema in kinds.items():
        for key in (*folder.no_effect, *folder.recorded_later):
            found = schema
            for part in key.split("."):
                hints = get_type_hints(found)
                assert part in hints, f"{schema.__name__} has no {key}"
                found = hints[part]


def test_inputs_are_compared_where_both_sides_know_them(tmp_path):
    def folder(**inputs):
        return RunFolder(tmp_path, asdict(recipe()), inputs)

    prompts = {"corpus.prompts.sha256": "a" * 64}
    folder(**prompts).finish("one_step", 1.0, {}, [])
    assert folder(**prompts).summary("one_step") and folder().summary("one_step")
    with pytest.raises(UserError, match=r"corpus.prompts.sha256: a{12} there, b{12} here"):
        folder(**{"corpus.prompts.sha256": "b" * 64}).summary("one_step")
    evaluated = folder(**prompts, **{"evaluation.prompts.sha256": "c" * 64})
    assert evaluated.summary("one_step")  # which no training stage reads


def test_a_flipped_byte_in_a_marker_is_told_and_the_advice_heals(tmp_path):
    folder = RunFolder(tmp_path, asdict(recipe()))
    folder.finish("one_step", 1.5, {"steps": 4}, [])
    marker = folder.marker("one_step")
    marker.write_text(marker.read_text().replace('"steps": 4', '"steps": 5'))
    with pytest.raises(UserError, match="one_step.json is damaged.*delete this file and run again"):
        folder.summary("one_step")
    marker.unlink()
    assert folder.summary("one_step") is None


def test_a_stage_is_taken_over_from_a_run_of_the_same_settings_and_from_no_other(tmp_path):
    changed = recipe()
    changed.match.steps = 7
    done, own = RunFolder(tmp_path / "done", asdict(recipe())), RunFolder(tmp_path / "own", asdict(changed))
    for path in (done.checkpoint("one_step"), done.checkpoint("match"), done.log("one_step")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    assert not own.take_over("one_step", done)  # not done yet
    done.finish("one_step", 1.5, {"steps": 4}, []), done.finish("match", 1.5, {"steps": 4}, [])
    assert own.take_over("one_step", done) and not own.take_over("match", done)
    assert own.summary("one_step")["figures"] == {"steps": 4} and own.summary("match") is None
    assert own.checkpoint("one_step").read_text() == "one_step.ckpt" and not own.checkpoints("match")
    assert own.log("one_step").is_file()
    assert not own.take_over("one_step", done)  # what is done here stays


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    folder = RunFolder(tmp_path, asdict(recipe()))
    for name in ("recipe.yaml", "corpus/holiday.jpg", "logs/diary.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    for action in (folder.check_ours, folder.claim, folder.clear):
        with pytest.raises(
            UserError, match="holds logs, which no `l2p distill` left there: choose another output_dir"
        ):
            action()
    assert (tmp_path / "recipe.yaml").read_text() == "mine" and not (tmp_path / MARK).exists()
    assert (tmp_path / "corpus/holiday.jpg").is_file() and (tmp_path / "logs/diary.txt").is_file()


def test_the_folder_of_a_recipe_is_not_its_output_dir(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: x")
    with pytest.raises(UserError, match="holds recipe.yaml"):
        RunFolder(tmp_path, asdict(recipe())).claim()


def test_clear_removes_what_a_run_writes_by_name_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path, asdict(recipe()))
    folder.claim()
    ours = ["recipe.yaml", "corpus/shard-000000.tar", "corpus/manifest-1.json", "logs/one_step.csv", "student/config.json",
            "student/text_encoder/model.safetensors", "checkpoints/match.ckpt", "checkpoints/match.shards/latest",
            "previews/one_step-000004.png", "stages/lift.json", "evaluation/teacher/ab.npz", "lift/grid.png"]  # fmt: skip
    theirs = ["notes.txt", "corpus/holiday.jpg", "logs/diary.txt", "student/notes.md", "previews/cat.png"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    elsewhere = tmp_path.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "pictures.npz").write_text("x")
    folder.clear()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {MARK, *theirs}
    assert not (tmp_path / "stages").exists()
    (tmp_path / "evaluation").symlink_to(elsewhere)
    folder.clear()
    assert (elsewhere / "pictures.npz").is_file() and not (tmp_path / "evaluation").exists()


def test_a_folder_of_another_command_is_refused(tmp_path):
    from l2p.training.grow import GrowFolder

    GrowFolder(tmp_path, {}).claim()
    with pytest.raises(UserError, match="is the folder of `l2p grow`"):
        RunFolder(tmp_path, asdict(recipe())).claim()


def test_a_run_from_before_the_marks_goes_on(tmp_path):
    folder = RunFolder(tmp_path, asdict(recipe()))
    folder.finish("one_step", 1.5, {"steps": 4}, [])
    marker = read_json(folder.marker("one_step"))
    write_json(
        folder.marker("one_step"), {key: marker[key] for key in ("stage", "figures", "warnings", "settings")}
    )
    folder.claim()
    assert read_sealed(tmp_path / MARK, "")["kind"] == "distill" and folder.summary("one_step")


def test_a_teacher_on_the_hub_stays_the_one_of_the_first_use(tmp_path, monkeypatch):
    snapshots = tmp_path / "hub" / "snapshots"
    found = [snapshots / "c1"]
    monkeypatch.setattr("l2p.teachers.resolve", lambda name, revision: found[0])
    folder = RunFolder(tmp_path / "run", asdict(recipe()), {"teacher.sha256": None})
    assert folder.pinned_teacher("ann/flow", fetch=False) is None  # a dry run asks nobody
    folder.claim()
    assert folder.pinned_teacher("ann/flow") == "c1"
    folder.finish("one_step", 1.0, {}, [])
    found[0] = snapshots / "c2"  # the branch has moved on
    again = RunFolder(tmp_path / "run", asdict(recipe()), {"teacher.sha256": "c2"})
    assert again.pinned_teacher("ann/flow", fetch=False) == again.pinned_teacher("ann/flow") == "c1"
    assert again.settings("one_step")["teacher.sha256"] == "c1"
    assert RunFolder(tmp_path / "other", {}).pinned_teacher(str(tmp_path)) is None  # a folder has no commit


def test_a_name_on_the_hub_is_pinned_to_the_commit_that_was_first_used(tmp_path):
    folder = RunFolder(tmp_path, asdict(recipe()))
    folder.claim()
    assert folder.pinned("teacher", "ann/flow@None", lambda: "c1") == "c1"
    assert RunFolder(tmp_path, {}).pinned("teacher", "ann/flow@None", lambda: "c2") == "c1"
    assert folder.pinned("teacher", "ann/flow@v2", lambda: "c3") == "c3"  # another revision is another wish


def test_a_second_process_is_refused_and_a_dead_ones_lock_is_not(tmp_path):
    folder = RunFolder(tmp_path, asdict(recipe()))
    hold = (
        "import sys; from l2p.training.run_folder import RunFolder\n"
        f"with RunFolder({str(tmp_path)!r}, {{}}).locked(): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {other.pid}"), folder.locked():
            pass
    finally:
        other.kill()
        other.communicate()
    assert (tmp_path / ".lock").is_file()  # killed: nobody removed it
    with folder.locked():
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_a_broken_lock_is_stale(tmp_path):
    (tmp_path / ".lock").write_text("{")
    with RunFolder(tmp_path, {}).locked():
        pass
