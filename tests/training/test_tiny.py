"""The tiny twin: each recipe of a real model runs whole on random weights of its own family."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from l2p.errors import UserError
from l2p.files import read_json
from l2p.recipe import load_recipe
from l2p.teachers import published_as
from l2p.training.tiny import shrunk

RECIPES = Path(__file__).parents[2] / "recipes"
REAL = ["z-image-turbo-1k", "flux1-dev-1k", "flux2-klein-1k", "qwen-image-1k", "sd3.5-1k", "sdxl-1k"]


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in REAL[:-1]), REAL[-1]]
)
def test_a_recipe_runs_whole_on_its_tiny_twin(l2p, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "qwen-image-1k":
        pytest.importorskip("peft")
    code, out, err = l2p("distill", RECIPES / f"{name}.yaml", "--tiny", "dtype=fp32")
    assert code == 0 and "the way is open" in out, err
    folder = tmp_path / "runs" / f"{name}-tiny"
    config, metrics = read_json(folder / "student" / "config.json"), read_json(folder / "metrics.json")
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert config["teacher"]["pipeline"] == published_as(recipe.teacher.path)[0].pipeline_class
    assert config["recipe"]["one_step"]["objectives"] == recipe.one_step.objectives
    for stage in ("lift", "corpus", "transfer", "one_step", "match", "student", "evaluation"):
        assert (folder / "stages" / f"{stage}.json").is_file(), stage
    # prompts of a file know no attributes: no judge, no Frechet distance, and a report all the same
    assert metrics["student"]["psnr_to_teacher"] > 0 and metrics["student"].get("attribute_accuracy") is None
    assert "judge" not in metrics and metrics["summary"]["speedup"] > 0
    assert "<html" in (folder / "report.html").read_text()[:200].lower()


def torchrun(tmp_path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes over gloo, as a user would."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    known = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [*launcher, *command], cwd=tmp_path, env=known, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_recipe_runs_whole_on_its_tiny_twin_in_two_processes(name, tmp_path):
    """The first one writes the pipeline that both load, and the first alone prints the result."""
    if name == "qwen-image-1k":
        pytest.importorskip("peft")
    argv = ["-m", "l2p.cli.main", "distill", str(RECIPES / f"{name}.yaml"), "--tiny"]
    done = torchrun(tmp_path, *argv, "logging.tensorboard=false", "dtype=fp32")
    assert done.stdout.count("the way is open") == 1
    folder = tmp_path / "runs" / f"{name}-tiny"
    assert (folder / "report.html").is_file()
    assert not [path for path in folder.rglob(".*.partial*")] and not (folder / ".lock").exists()


UNTIL_IT_IS_LOADED = """
import sys
from l2p import distributed
from l2p.teachers import load_teacher
from l2p.training import distill, tiny

write = tiny.prepare
def prepare(recipe, small):
    (open("written", "x")).close()  # fails where another process has been here
    write(recipe, small)

def run(recipe, resume):
    load_teacher(recipe.teacher.path)
    open(f"loaded-{distributed.rank()}", "x").close()
    return {"seconds": 0.0, "report": "", "student": "", "output_dir": ""}

distill.run, tiny.prepare = run, prepare
from l2p.cli.main import main
sys.exit(main(["distill", *sys.argv[1:]]))
"""


def test_one_of_two_processes_writes_the_tiny_pipeline_and_both_load_it(tmp_path):
    (tmp_path / "distill.py").write_text(UNTIL_IT_IS_LOADED)
    done = torchrun(tmp_path, "distill.py", str(RECIPES / "sdxl-1k.yaml"), "--tiny", "dtype=fp32")
    assert {path.name for path in tmp_path.glob("loaded-*")} == {"loaded-0", "loaded-1"}
    assert done.stdout.count("the way is open") == 1


def test_the_prompts_that_are_there_are_used_and_the_teacher_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(RECIPES / "z-image-turbo-1k.yaml")
    small = shrunk(recipe)
    assert small.corpus.prompts == "runs/z-image-turbo-1k-tiny/tiny-prompts.txt"
    assert small.teacher.path == "runs/z-image-turbo-1k-tiny/tiny-teacher" and small.device == "auto"
    Path("prompts.txt").write_text("a lake\n")
    assert shrunk(recipe).corpus.prompts == "prompts.txt"
    recipe.teacher.path = "ann/her-own-model"
    with pytest.raises(UserError, match="ann/her-own-model is cannot be known.*see l2p teachers"):
        shrunk(recipe)


def test_a_logger_that_is_not_installed_is_a_warning(monkeypatch):
    from l2p.errors import UserNotice
    from l2p.training.engine import loggers

    monkeypatch.setattr(loggers, "_installed", lambda package: False)
    config = load_recipe(RECIPES / "quickstart.yaml", ["logging.tensorboard=true"]).logging
    with pytest.warns(UserNotice, match=r"logging.tensorboard needs .*\[tensorboard\].*csv only"):
        loggers.check_loggers(config)
    assert loggers.extra_loggers(config, Path("unused"), "name", "one_step") == []
    assert (
        shrunk(load_recipe(RECIPES / "sdxl-1k.yaml", ["logging.tensorboard=true"])).logging.tensorboard
        is False
    )


def test_a_dry_run_of_the_tiny_twin_writes_nothing(l2p, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = (RECIPES / "sdxl-1k.yaml", "--tiny", "--dry-run")
    code, out, _ = l2p("distill", *argv)
    full = l2p("distill", RECIPES / "sdxl-1k.yaml", "--dry-run")[1]
    assert "2.6 B in the teacher's network" in full
    assert code == 0 and "sdxl-1k-tiny" in out and "core: tiny" in out and not list(tmp_path.iterdir())


def test_the_bundled_teacher_is_its_own_tiny_twin():
    small = shrunk(load_recipe(RECIPES / "quickstart.yaml"))
    assert small.teacher.path == "landscapes" and small.corpus.prompts == "landscapes"
    assert small.one_step.steps == 2 and small.student.head.pretrained is None


def test_a_growing_runs_on_its_tiny_twin(l2p, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = l2p("grow", RECIPES / "z-image-4k.yaml", "--tiny", "dtype=fp32", "factor=2")
    assert code == 0 and "the grown student is in runs/z-image-4k-tiny/student" in out, err
    config = read_json("runs/z-image-4k-tiny/student/config.json")
    assert config["patch_size"] == 32 and config["head"]["factor"] == 2 and config["height"] == 128


@pytest.mark.slow
def test_a_decoder_trains_on_its_tiny_twin(l2p, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = l2p("train-pid", RECIPES / "pid-flux-4x.yaml", "--tiny", "dtype=fp32")
    assert code == 0 and "the decoder is in runs/pid-flux-4x-tiny/decoder" in out, err
    for stage in ("flow", "few_step", "one_step"):
        assert Path(f"runs/pid-flux-4x-tiny/stages/{stage}.json").is_file()
