"""`l2p synthesize` on a tiny pipeline, and a distillation that takes its corpus over."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from l2p.corpus import read_manifest
from l2p.errors import UserError
from l2p.lift import Lift
from l2p.recipe import load_recipe
from l2p.training import synthesize
from l2p.training.run_folder import RunFolder
from l2p.training.stages import Run, draw_the_corpus, fit_the_lift

RECIPE = """
name: tiny
threads: 1
dtype: fp32
teacher: {path: PIPELINE, num_inference_steps: 2, height: 32, width: 48}
corpus: {num_pairs: 6, num_prompts: 5, num_inference_steps: 2, batch_size: 2, shard_size: 4, filters: {min_words: 7, near_duplicates: 1}}
lift: {num_images: 24, min_r2: -1}
evaluation: {preview_images: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("synthesize")


@pytest.fixture(scope="module")
def recipe_path(folder, tiny_pipeline):
    path = folder / "corpus.yaml"
    path.write_text(RECIPE.replace("PIPELINE", tiny_pipeline))
    return path


@pytest.fixture(scope="module")
def drawn(folder, recipe_path):
    """A corpus drawn by two processes, as torchrun would number them, here one after the other."""
    recipe = load_recipe(recipe_path, [f"output_dir={folder / 'run'}"])
    first = synthesize.run(recipe, share=(0, 2), progress=False)
    second = synthesize.run(recipe, share=(1, 2), progress=False)
    return recipe, first, second


def test_both_processes_together_make_it_whole(drawn):
    recipe, first, second = drawn
    assert not first["complete"] and first["pictures"] == 4
    assert second["complete"] and second["pictures"] == 6 and second["shards"] == 2
    assert second["prompts"]["kept"] == 5
    grid = np.asarray(Image.open(second["grid"]))
    assert grid.shape[1] >= 6 * 48 and grid.std() > 1  # one row of six
    assert synthesize.verified(recipe)["pictures"] == 6


def test_a_distillation_takes_corpus_and_lift_over(drawn, folder, recipe_path):
    recipe = load_recipe(
        recipe_path, [f"output_dir={folder / 'student'}", f"corpus.path={folder / 'run' / 'corpus'}"]
    )
    before = read_manifest(folder / "run" / "corpus")
    run = Run(recipe, RunFolder(recipe.output_dir, {}), *device(), progress=False)
    (folder / "student").mkdir()
    figures, _ = fit_the_lift(run)
    kept, taken = (Lift.load(folder / name / "lift.safetensors") for name in ("run/corpus", "student"))
    assert (kept.basis == taken.basis).all() and figures["r2"] == kept.r2
    figures, _ = draw_the_corpus(run)
    assert figures["num_pairs"] == 6 and read_manifest(folder / "run" / "corpus") == before
    assert not list((folder / "student").rglob("*.tar"))


def test_a_lift_of_another_kind_is_refused(drawn, folder, recipe_path):
    changes = [
        f"output_dir={folder / 'other'}",
        f"corpus.path={folder / 'run' / 'corpus'}",
        "lift.scale=energy",
    ]
    run = Run(load_recipe(recipe_path, changes), RunFolder(folder / "other", {}), *device(), progress=False)
    with pytest.raises(UserError, match=r"coupled by another lift \(scale: procrustes there, energy here\)"):
        fit_the_lift(run)


def test_a_corpus_without_latents_is_not_distilled_from(drawn, folder, recipe_path):
    changes = [f"output_dir={folder / 'bare'}", "corpus.latents=false", "corpus.num_pairs=2"]
    recipe = load_recipe(recipe_path, changes)
    assert synthesize.run(recipe, progress=False)["pictures"] == 2
    run = Run(recipe, RunFolder(folder / "bare", {}), *device(), progress=False)
    with pytest.raises(UserError, match="keeps no latents: draw it with corpus.latents=true"):
        run.dataset  # noqa: B018


def device():
    import torch

    return torch.device("cpu"), torch.float32


def test_the_share_is_torchruns(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert synthesize.share_of_the_environment() == (0, 1)
    monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "3", "WORLD_SIZE": "8"})
    assert synthesize.share_of_the_environment() == (3, 8)
    monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "8", "WORLD_SIZE": "8"})
    with pytest.raises(UserError, match="RANK=8 and WORLD_SIZE=8 in the environment do not fit together"):
        synthesize.share_of_the_environment()


def test_the_command(l2p, drawn, folder, recipe_path):
    words = ["synthesize", recipe_path, f"output_dir={folder / 'command'}"]
    code, out, _ = l2p(*words, "--dry-run", "--json")
    plan = {row["step"]: row["state"] for row in json.loads(out)}
    assert (code, plan) == (0, {"prompts": "new", "lift": "new", "pictures": "new"})
    assert not (folder / "command").exists()

    code, out, _ = l2p(*words, "--prompts-only")
    assert code == 0 and "5 kept" in out and "dropped, length" in out and "is not complete" in out
    assert not list((folder / "command").rglob("*.tar"))

    again = ["synthesize", recipe_path, f"output_dir={folder / 'run'}"]
    code, out, _ = l2p(*again, "--json")
    assert code == 0 and json.loads(out)["complete"]
    code, out, _ = l2p(*again, "--check")
    assert code == 0 and "6 pictures, none twice, in 2 shards" in out
    code, out, err = l2p(*words, "--check")
    assert code == 2 and "is no corpus" in err and err.count("\n") == 1
    code, out, err = l2p(*again, "corpus.num_inference_steps=3")
    assert code == 2 and "made with other settings (num_inference_steps: 2 there, 3 here)" in err


def test_the_taxonomy_is_printed_and_a_recipe_is_wanted(l2p):
    code, out, _ = l2p("synthesize", "--print-taxonomy")
    assert code == 0 and "classes:" in out and "templates:" in out
    code, _, err = l2p("synthesize")
    assert code == 2 and "required: RECIPE" in err
