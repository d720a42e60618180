"""A tiny distillation: the random pipeline at 64 px, and a run whose lift and corpus are already done."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from l2p.recipe import (
    CorpusConfig,
    EvaluationConfig,
    HeadConfig,
    LiftConfig,
    Recipe,
    StageConfig,
    StudentConfig,
    TeacherConfig,
)

PLANTED = {
    "HF_TOKEN": "hf_planted0planted0planted0planted",
    "HUGGING_FACE_HUB_TOKEN": "hf_planted1planted1planted1planted",
    "OPENAI_API_KEY": "sk-planted2planted2planted2planted",
    "WANDB_API_KEY": "planted3planted3planted3planted3planted3",
    "AWS_SECRET_ACCESS_KEY": "planted4planted4planted4planted4planted4",
}


def tiny_recipe(pipeline: str, prompts: Path, output_dir: Path) -> Recipe:
    match = StageConfig(enabled=False, objectives={"pairs": {"weight": 1.0}, "drift": {"weight": 1.0}})
    one_step = StageConfig(
        steps=10,
        batch_size=3,
        warmup_steps=2,
        weight_decay=0.01,
        checkpoint_every=5,
        preview_every=4,
        objectives={"pairs": {"weight": 1.0, "perceptual_fraction": 0.5}, "flow": {"weight": 0.5}},
    )
    return Recipe(
        name="tiny",
        output_dir=str(output_dir),
        dtype="fp32",
        threads=torch.get_num_threads(),
        device="cpu",
        teacher=TeacherConfig(path=pipeline, num_inference_steps=2, height=64, width=64),
        corpus=CorpusConfig(
            num_pairs=8, num_inference_steps=2, prompts=str(prompts), batch_size=8, shard_size=8
        ),
        lift=LiftConfig(num_images=8, min_r2=-1),
        student=StudentConfig(
            head=HeadConfig(fine_patch=8, width=32, num_blocks=1, head_dim=16, tile=4, halo=2)
        ),
        one_step=one_step,
        match=match,
        evaluation=EvaluationConfig(
            num_images=2, batch_size=2, preview_images=2, latency_runs=1, peak_memory=False
        ),
    )


@pytest.fixture(scope="session")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red house by a lake at dusk\nsnow on high mountains\na river, three trees\n")
    return path


@pytest.fixture
def recipe(tiny_pipeline, prompts, tmp_path) -> Recipe:
    """The tiny recipe, of which nothing has run."""
    return tiny_recipe(tiny_pipeline, prompts, tmp_path / "run")


@pytest.fixture(scope="session")
def prepared(tiny_pipeline, prompts, tmp_path_factory) -> Path:
    """A run's folder with its lift and corpus, and nothing trained."""
    from l2p.training import distill, stages

    folder = tmp_path_factory.mktemp("runs") / "prepared"
    recipe = tiny_recipe(tiny_pipeline, prompts, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stages.STAGES, "one_step", replace(stages.STAGES["one_step"], run=_stop))
        with pytest.raises(_Stopped):
            distill.run(recipe, progress=False)
    return folder


@pytest.fixture(scope="session")
def another_run(prepared, tiny_pipeline, prompts):
    """`another_run(name)`: as `new_run`, for the whole session, and with its evaluation."""

    def make(name: str) -> Recipe:
        shutil.copytree(prepared, prepared.with_name(name))
        return tiny_recipe(tiny_pipeline, prompts, prepared.with_name(name))

    return make


@pytest.fixture
def new_run(prepared, tiny_pipeline, prompts, tmp_path, monkeypatch):
    """`new_run(name)`: a recipe whose output_dir is a fresh copy of the prepared run; its evaluation is left out."""
    from l2p.training import stages

    monkeypatch.setitem(stages.STAGES, "evaluation", replace(stages.STAGES["evaluation"], run=_skip))

    def make(name: str = "run") -> Recipe:
        shutil.copytree(prepared, tmp_path / name)
        return tiny_recipe(tiny_pipeline, prompts, tmp_path / name)

    return make


def _skip(run, previous):
    from l2p.files import write_json, write_text

    write_json(run.folder.path / "metrics.json", {})
    write_text(run.folder.path / "report.html", "left out")
    return {}, []


@pytest.fixture
def finished(straight, tiny_pipeline, prompts, tmp_path, monkeypatch):
    """`finished()`: a recipe whose output_dir is a copy of the undisturbed run; a new evaluation is left out."""
    from l2p.training import stages

    monkeypatch.setitem(stages.STAGES, "evaluation", replace(stages.STAGES["evaluation"], run=_skip))

    def make() -> Recipe:
        shutil.copytree(straight[0].output_dir, tmp_path / "finished")
        return tiny_recipe(tiny_pipeline, prompts, tmp_path / "finished")

    return make


@pytest.fixture(scope="session")
def straight(prepared, tiny_pipeline, prompts) -> tuple[Recipe, dict]:
    """The recipe and the result of a run that nothing disturbed; not to be changed."""
    from l2p.training import distill

    output_dir = prepared.with_name("straight")
    shutil.copytree(prepared, output_dir)
    recipe = tiny_recipe(tiny_pipeline, prompts, output_dir)
    with pytest.MonkeyPatch.context() as patch:
        for name, secret in PLANTED.items():  # test_secrets.py looks for them in whatever the run left
            patch.setenv(name, secret)
        return recipe, distill.run(recipe, progress=False)


class _Stopped(Exception):
    pass


def _stop(*_) -> None:
    raise _Stopped
