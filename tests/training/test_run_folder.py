import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from l2p.errors import UserError
from l2p.recipe import Recipe
from l2p.training.run_folder import RunFolder, changes, settings_of


def recipe(**changed):
    return Recipe(name="x", output_dir="unused", **changed)


def test_a_stage_depends_on_what_it_and_the_stages_before_it_read():
    before, after = recipe(), recipe()
    after.one_step.learning_rate = 5e-4
    after.match.preview_every = 7
    after.evaluation.num_images = 3
    for stage in ("lift", "corpus", "transfer"):
        assert settings_of(stage, asdict(before)) == settings_of(stage, asdict(after))
    told = changes(settings_of("match", asdict(before)), settings_of("match", asdict(after)))
    assert told == "one_step.learning_rate 0.001 -> 0.0005"


def test_a_stage_that_is_off_has_no_settings():
    before, after = recipe(), recipe()
    after.transfer.steps = 7  # off by default
    assert changes(settings_of("match", asdict(before)), settings_of("match", asdict(after))) == ""
    after.transfer.enabled = True
    assert "transfer" in changes(settings_of("match", asdict(before)), settings_of("match", asdict(after)))


def test_a_done_stage_is_known_and_changed_settings_are_refused_by_name(tmp_path):
    folder = RunFolder(tmp_path, asdict(recipe()))
    assert folder.summary("corpus") is None
    folder.finish("corpus", 1.5, {"num_pairs": 4}, ["look"])
    assert RunFolder(tmp_path, asdict(recipe())).summary("corpus")["figures"] == {"num_pairs": 4}
    changed = recipe(seed=3)
    with pytest.raises(UserError, match=r"corpus stage with other settings \(seed 0 -> 3\).*--resume never"):
        RunFolder(tmp_path, asdict(changed)).summary("corpus")
    folder.forget_from("lift")
    assert folder.summary("corpus") is None


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


def test_clear_removes_what_is_ours_and_refuses_a_foreign_folder(tmp_path):
    folder = RunFolder(tmp_path, asdict(recipe()))
    (tmp_path / "logs").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no recipe\.yaml of ours"):
        folder.clear()
    assert (tmp_path / "logs").is_dir()
    (tmp_path / "recipe.yaml").write_text("name: x")
    folder.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


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
