"""A whole run, and what happens when it is killed, interrupted, diverges, or is asked for something else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from l2p.corpus import CorpusDataset
from l2p.errors import UserError
from l2p.files import read_json, remove
from l2p.objectives import PairsObjective
from l2p.recipe import LoRAConfig, load_recipe
from l2p.students.io import load_student
from l2p.students.lora import lora_of, plain_state
from l2p.training import distill, stages
from l2p.training.engine.log import read_log
from l2p.training.engine.progress import TrainingBar
from l2p.training.engine.sharded import load_checkpoint

KILLED = """
import os, signal, sys
from l2p.recipe import load_recipe
from l2p.training import distill
from l2p.training.engine.checkpoints import KeepLast

after = KeepLast.on_train_batch_end

def die(self, trainer, *rest):
    after(self, trainer, *rest)
    if trainer.global_step == 7:  # two steps after the checkpoint of step 5
        os.kill(os.getpid(), signal.SIGKILL)

KeepLast.on_train_batch_end = die
distill.run(load_recipe(sys.argv[1]), progress=False)
"""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_student(folder / "student").state_dict()


def assert_same(recipe, straight) -> None:
    """Every logged number but the seconds, and every weight, to 1e-6."""
    rows, expected = (read_log(Path(r.output_dir) / "logs" / "one_step.csv") for r in (recipe, straight))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 11)]
    for row, other in zip(rows, expected, strict=True):
        for name in row.keys() - {"step", "seconds", "psnr"}:
            assert float(row[name]) == pytest.approx(float(other[name]), abs=1e-6), (name, row["step"])
    one, two = weights(Path(recipe.output_dir)), weights(Path(straight.output_dir))
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6


def test_a_whole_run_leaves_all_it_promises(straight):
    recipe, result = straight
    out = Path(recipe.output_dir)
    for name in (
        "recipe.yaml",
        "lift.safetensors",
        "lift/grid.png",
        "metrics.json",
        "report.html",
        "stages/one_step.png",
    ):
        assert (out / name).is_file(), name
    assert sorted(path.name for path in (out / "previews").iterdir()) == [
        "one_step-000004.png",
        "one_step-000008.png",
    ]
    assert (
        not list(out.rglob("*.partial*"))
        and not (out / ".lock").exists()
        and not (out / "lightning_logs").exists()
    )
    assert list(result["stages"]) == ["lift", "corpus", "one_step", "student", "evaluation"]
    summary = result["stages"]["one_step"]
    assert (
        summary["figures"]["steps"] == 10
        and summary["seconds"] > 0
        and summary["grid"] == "stages/one_step.png"
    )
    assert result["metrics"]["student"]["psnr_to_teacher"] > 0
    assert load_recipe(out / "recipe.yaml") == recipe
    # The student is the average, not the raw weights; the checkpoint holds no teacher.
    checkpoint = load_checkpoint(out / "checkpoints" / "one_step.ckpt")
    name = "core.transformer.layers.0.attention.to_q.weight"
    average = checkpoint["callbacks"]["EMACallback"]["average"][name]
    assert torch.equal(weights(out)[name], average)
    assert not torch.equal(checkpoint["state_dict"][f"student.{name}"], average)
    assert all(key.startswith("student.") for key in checkpoint["state_dict"])


def test_a_rerun_skips_what_is_done(straight):
    recipe, first = straight
    marker = Path(recipe.output_dir) / "stages" / "one_step.json"
    before = marker.stat().st_mtime_ns
    again = distill.run(recipe, progress=False)
    assert marker.stat().st_mtime_ns == before
    assert again["metrics"] == first["metrics"]
    assert [row["state"] for row in distill.plan(recipe)] == [
        "done",
        "done",
        "off",
        "done",
        "off",
        "done",
        "done",
    ]


def test_kill_and_resume_equals_straight(new_run, straight, tmp_path):
    recipe = new_run()
    recipe.one_step.preview_every = 100  # looking at pictures must not change what is trained

    OmegaConf.save(OmegaConf.structured(recipe), tmp_path / "killed.yaml")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed.yaml")]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    out = Path(recipe.output_dir)
    assert [row["step"] for row in read_log(out / "logs" / "one_step.csv")] == [
        str(step) for step in range(1, 8)
    ]
    assert load_checkpoint(out / "checkpoints" / "one_step.ckpt")["l2p"]["step"] == 5
    with (out / "logs" / "one_step.csv").open("a") as file:
        file.write("8,0.1,0.0")  # half a row, as a kill may leave it
    distill.run(recipe, progress=False)
    assert_same(recipe, straight[0])


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_a_signal_leaves_a_resumable_run(new_run, straight, monkeypatch, number, times):
    recipe = new_run()
    original = TrainingBar.on_train_batch_end

    def press(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 7:
            for _ in range(times):
                os.kill(os.getpid(), number)

    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingBar, "on_train_batch_end", press)
        with pytest.raises(KeyboardInterrupt) as stopped:
            distill.run(recipe, progress=False)
    assert stopped.value.signum == number
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    out = Path(recipe.output_dir)
    kept = 7 if times == 1 else 5  # a second Ctrl-C does not wait for the step to be kept
    assert load_checkpoint(out / "checkpoints" / "one_step.ckpt")["l2p"]["step"] == kept
    assert not (out / "stages" / "one_step.json").exists() and not (out / ".lock").exists()
    distill.run(recipe, progress=False)
    assert_same(recipe, straight[0])


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_guard_stops_with_the_last_good_checkpoint(new_run, monkeypatch, where):
    recipe = new_run()
    original = PairsObjective.forward

    def spoil(self, ctx):
        terms = original(self, ctx)
        if ctx.step == 6 and where == "loss":
            terms["pixel"] = terms["pixel"] * float("nan")
        if ctx.step == 6 and where == "gradient":
            ctx.picture.register_hook(lambda gradient: gradient * float("nan"))
        return terms

    monkeypatch.setattr(PairsObjective, "forward", spoil)
    said = r"the loss is nan \(from pairs/pixel\)" if where == "loss" else "the gradient norm is nan"
    with pytest.raises(
        UserError, match=f"one_step stopped at step 6: {said}.*one_step.ckpt.*one_step.learning_rate"
    ):
        distill.run(recipe, progress=False)
    checkpoint = load_checkpoint(Path(recipe.output_dir) / "checkpoints" / "one_step.ckpt")
    assert checkpoint["l2p"]["step"] == 5
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_changed_settings_are_refused_and_never_starts_anew(new_run, straight):
    recipe = new_run()
    recipe.student.head.width = 48
    recipe.lift.num_images = 9
    with pytest.raises(
        UserError, match=r"lift stage with other settings \(lift.num_images: 8 there, 9 here\)"
    ):
        distill.run(recipe, progress=False)
    recipe.one_step.steps = 1
    result = distill.run(recipe, resume="never", progress=False)
    assert result["stages"]["lift"]["figures"]["num_tokens"] == 9 * 16
    recipe.one_step.batch_size = 2
    with pytest.raises(
        UserError,
        match=r"one_step stage with other settings \(one_step.batch_size: 3 there, 2 here\).*--resume one_step",
    ):
        distill.run(recipe, progress=False)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def as_if_training(out: Path) -> None:
    """Take back the markers from the training stage on: the files stay."""
    for stage in ("one_step", "student", "evaluation"):
        (out / "stages" / f"{stage}.json").unlink()


@pytest.mark.parametrize("what", ["checkpoint", "shard", "lift", "marker", "manifest", "metrics"])
def test_damaged_bytes_are_one_line_and_its_advice_heals(finished, straight, what):
    recipe = finished()
    out = Path(recipe.output_dir)
    path = {
        "checkpoint": out / "checkpoints/one_step.ckpt",
        "shard": out / "corpus/shard-000000.tar",
        "lift": out / "lift.safetensors",
        "marker": out / "stages/lift.json",
        "manifest": out / "corpus/manifest.json",
        "metrics": out / "metrics.json",
    }[what]
    if what != "metrics":
        as_if_training(out)
    place = path.stat().st_size // 2
    if what == "shard":
        with tarfile.open(path) as tar:
            place = tar.getmember("00000003.latent.safetensors").offset_data + 600
    if what == "metrics":
        path.write_bytes(b"{")
    else:
        flip(path, path.read_text().index("0") if what in ("marker", "manifest") else place)
    with pytest.raises(UserError, match="(delete|move).* and run again") as error:
        distill.run(recipe, progress=False)
    said = str(error.value)
    assert path.name in said and "\n" not in said
    remove(path.parent if "delete the folder" in said else path)
    distill.run(recipe, progress=False)
    if what != "metrics":
        assert_same(recipe, straight[0])


def test_a_stage_whose_files_are_gone_is_done_again(finished, straight, capsys):
    recipe = finished()
    out = Path(recipe.output_dir)
    for name in ("student", "report.html", "lift.safetensors", "corpus/shard-000000.tar"):
        remove(out / name)
    result = distill.run(recipe, progress=False)
    told = capsys.readouterr().err
    for stage in ("lift", "corpus", "student", "evaluation"):
        assert f"{stage}: {out}" in told and "is gone, so the stage is done again" in told
    assert "one_step: " not in told and len(CorpusDataset(out / "corpus")) == 8
    assert all((out / name).exists() for name in ("student/config.json", "report.html", "lift.safetensors"))
    assert result["report"] == str(out / "report.html")
    assert_same(recipe, straight[0])
    remove(out / "checkpoints")  # which nothing is left to start from
    distill.run(recipe, progress=False)
    assert not (out / "checkpoints").exists()
    remove(out / "student")
    recipe.one_step.preview_every = 0
    distill.run(recipe, progress=False)
    assert (out / "checkpoints/one_step.ckpt").is_file() and (out / "student/config.json").is_file()
    flip(out / "student/model.safetensors", -5)
    with pytest.raises(
        UserError, match="student is not what the student stage left.*move it away and run again"
    ):
        distill.run(recipe, progress=False)


@pytest.mark.parametrize("what", ["prompts", "teacher"])
def test_inputs_changed_in_place_are_refused_by_name(finished, what):
    recipe = finished()
    path = Path(recipe.corpus.prompts)
    if what == "teacher":
        (path,) = (Path(recipe.teacher.path) / "vae").glob("*.safetensors")
    before = path.read_bytes()
    try:
        path.write_bytes(
            before.replace(b"red", b"old") if what == "prompts" else before[:-1] + bytes([before[-1] ^ 1])
        )
        key = {"prompts": "corpus.prompts", "teacher": "teacher"}[what]
        with pytest.raises(
            UserError, match=rf"lift stage with other settings \({key}.sha256: \w+ there, \w+ here"
        ):
            distill.run(recipe, progress=False)
    finally:
        path.write_bytes(before)


def test_a_stage_is_redone_by_its_name_and_the_corpus_stays(finished):
    recipe = finished()
    recipe.one_step.steps = 1
    manifest = Path(recipe.output_dir) / "corpus/manifest.json"
    before = manifest.stat().st_mtime_ns
    result = distill.run(recipe, resume="one_step", progress=False)
    assert result["stages"]["one_step"]["figures"]["steps"] == 1 and manifest.stat().st_mtime_ns == before


def test_the_recipe_s_own_folder_is_no_output_dir(new_run, tmp_path):
    recipe = new_run()
    recipe.output_dir = str(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("name: mine")
    for resume in ("auto", "never"):
        with pytest.raises(UserError, match="holds recipe.yaml, which no `l2p distill` left there"):
            distill.run(recipe, resume=resume, progress=False)
    assert (tmp_path / "mine" / "recipe.yaml").read_text() == "name: mine"
    with pytest.raises(UserError, match="holds recipe.yaml"):
        distill.plan(recipe)


def test_resume_from_a_checkpoint_of_ones_choice(new_run, straight, tmp_path):
    recipe = new_run()
    with pytest.raises(UserError, match="no checkpoint at"):
        distill.run(recipe, resume=str(tmp_path / "none.ckpt"), progress=False)
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        distill.run(recipe, resume=str(tmp_path / "broken.ckpt"), progress=False)
    chosen = Path(straight[0].output_dir) / "checkpoints" / "one_step.ckpt"
    distill.run(recipe, resume=str(chosen), progress=False)
    one, two = weights(Path(recipe.output_dir)), weights(Path(straight[0].output_dir))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (Path(recipe.output_dir) / "logs" / "one_step.csv").exists()  # no step was left to train


@pytest.mark.slow
def test_every_stage_starts_from_the_average_before_it_and_in_bf16_too(new_run):
    recipe = new_run()
    recipe.dtype = "bf16"
    for stage in (recipe.transfer, recipe.one_step, recipe.match):
        stage.enabled, stage.steps, stage.batch_size, stage.ema_decay = True, 2, 2, 0.5
    recipe.match.optimizer = "adamw"
    result = distill.run(recipe, resume="never", progress=False)
    figures = {name: summary["figures"] for name, summary in result["stages"].items()}
    assert figures["transfer"]["preview_steps"] == 8
    assert (
        figures["match"]["psnr_before"] == figures["one_step"]["psnr"] != figures["one_step"]["psnr_before"]
    )
    assert set(figures["match"]["last_step"]) >= {"loss", "pairs/pixel", "drift/drift", "grad_norm"}
    student = load_student(Path(result["student"]))
    assert next(student.parameters()).dtype == torch.float32


def test_a_full_disk_leaves_the_checkpoint_before_it(new_run, monkeypatch):
    recipe = new_run()
    original = torch.save

    def save(checkpoint, file):
        with open("/dev/full", "wb") as full:
            original(checkpoint, full if checkpoint["global_step"] == 10 else file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match="no space left for .*run again"):
        distill.run(recipe, progress=False)
    checkpoints = Path(recipe.output_dir) / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["one_step.ckpt"]
    assert load_checkpoint(checkpoints / "one_step.ckpt")["l2p"]["step"] == 5


def test_mistakes_are_found_before_any_work(new_run):
    recipe = new_run()
    recipe.one_step.objectives = {"pair": {}}
    with pytest.raises(
        UserError, match=r"one_step: unknown key objectives.pair: did you mean objectives.pairs\?"
    ):
        distill.run(recipe, progress=False)
    recipe = new_run("seed")
    recipe.seed = 6_999_999
    with pytest.raises(UserError, match="judged on what it was trained on"):
        distill.run(recipe, progress=False)
    recipe = new_run("solver")
    recipe.corpus.solver, recipe.corpus.num_inference_steps = "adams", 30
    with pytest.raises(UserError, match="is more than the teacher's own"):
        distill.run(recipe, progress=False)


def test_a_stage_that_lost_quality_says_so(new_run, monkeypatch):
    from l2p.training.held_out import HeldOut

    recipe = new_run()
    recipe.one_step.steps = 1
    monkeypatch.setattr(HeldOut, "measure", lambda *_: 60.0)
    result = distill.run(recipe, progress=False)
    (said,) = read_json(Path(recipe.output_dir) / "stages" / "one_step.json")["warnings"]
    assert said.startswith("one_step moved the pictures away from the teacher's: 60.0 -> ")
    assert said in result["warnings"]


@pytest.mark.slow
def test_a_small_corpus_is_learned_by_heart(new_run):
    recipe = new_run()
    stage = recipe.one_step
    stage.steps, stage.batch_size, stage.learning_rate, stage.ema_decay = 40, 7, 1e-2, 0.8
    stage.preview_every = stage.checkpoint_every = 1000
    stage.objectives = {"pairs": {"weight": 1.0, "perceptual": 0.0}}
    distill.run(recipe, progress=False)
    rows = read_log(Path(recipe.output_dir) / "logs" / "one_step.csv")
    assert float(rows[-1]["pairs/pixel"]) < 0.72 * float(rows[0]["pairs/pixel"])


def test_adapters_train_in_place_of_the_core(new_run):
    pytest.importorskip("peft")
    recipe = new_run("lora")
    recipe.student.lora = LoRAConfig(rank=2, alpha=4.0, targets=["to_q", "w2"])
    recipe.one_step.steps = 2
    distill.run(recipe, progress=False)
    folder = Path(recipe.output_dir)
    student, start = load_student(folder / "student"), load_student(folder / "lift")
    assert lora_of(student) == {"rank": 2, "alpha": 4.0, "targets": ["to_q", "w2"]}
    own = plain_state(student)
    core = {name: v for name, v in start.state_dict().items() if name.startswith("core.")}
    assert core and all(torch.equal(own[name], value) for name, value in core.items())
    factors = [p for name, p in student.named_parameters() if "lora_B" in name]
    assert factors and all(p.abs().max() > 0 for p in factors)


def test_a_lift_that_explains_little_is_told_of_or_refused(new_run):
    assert stages.weakness(0.8, 0.2) == []
    assert "explains 0.31 of the pixels" in stages.weakness(0.31, 0.2)[0]
    recipe = new_run()
    recipe.lift.min_r2 = 1.0
    with pytest.raises(UserError, match=r"explains -?\d\.\d\d of the pixels.*less than lift.min_r2=1.0"):
        distill.run(recipe, resume="never", progress=False)
