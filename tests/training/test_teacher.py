"""The teacher's training, end to end on a few pictures, and its loop's promise to resume exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from l2p.errors import UserError
from l2p.images import from_uint8
from l2p.landscapes import load_world
from l2p.teachers import build, load_teacher
from l2p.training.engine.task import OptimConfig
from l2p.training.teacher import (
    PicturesConfig,
    TeacherRecipe,
    TransformerTraining,
    VAETraining,
    draw_pictures,
    run,
)


def tiny_recipe(folder, transformer_steps: int = 4) -> TeacherRecipe:
    optim = OptimConfig(steps=4, batch_size=4, warmup_steps=1, checkpoint_every=2, optimizer="muon")
    sizes = build.TransformerSizes(dim=64, n_layers=1, n_refiner_layers=1, n_heads=2, axes_dims=[8, 12, 12])
    return TeacherRecipe(
        name="tiny",
        output_dir=str(folder),
        pictures=PicturesConfig(count=12, height=64, width=64),
        vae=VAETraining(sizes=build.VAESizes([8, 8, 16, 16]), optim=optim, crop=32),
        transformer=TransformerTraining(
            sizes=sizes,
            text=build.TextSizes(32, 2, 2, 64, 400),
            optim=OptimConfig(
                steps=transformer_steps, batch_size=4, warmup_steps=1, checkpoint_every=2, optimizer="muon"
            ),
        ),
    )


def test_a_trained_folder_is_a_pipeline_and_a_teacher(tmp_path):
    folder = run(tiny_recipe(tmp_path))
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(folder)
    teacher = load_teacher(folder)
    latents = torch.randn(1, *teacher.geometry.latent_shape(64, 64))
    drawn = pipeline("a lake at dusk", height=64, width=64, num_inference_steps=2, latents=latents).images[0]
    assert drawn.size == (64, 64)
    assert teacher.license == "apache-2.0"
    pictures = torch.rand(4, 3, 64, 64) * 2 - 1
    assert teacher.encode(pictures).shape == (4, 16, 8, 8)
    assert {p.name for p in folder.iterdir()} >= {
        "recipe.yaml",
        "training.json",
        "vae-log.csv",
        "transformer-log.csv",
    }


def test_the_second_world_and_a_vae_that_starts_before_all_is_drawn(tmp_path):
    recipe = tiny_recipe(tmp_path)
    recipe.pictures.world, recipe.vae.count = "landscapes-v2", 4
    folder = run(recipe)
    drawn = np.load(tmp_path / "pictures" / "64x64.npy")
    seeds = range(recipe.pictures.first_seed, recipe.pictures.first_seed + 12)
    assert np.array_equal(drawn, load_world("landscapes-v2").render_batch(seeds, 64, 64))
    assert "`landscapes-v2`" in (folder / "README.md").read_text()
    assert [row.split(",")[0] for row in (tmp_path / "vae-held-out.csv").read_text().split()] == [
        "000002",
        "000004",
    ]


def test_pictures_of_something_else_are_refused(tmp_path):
    recipe = tiny_recipe(tmp_path)
    assert draw_pictures(recipe) == tmp_path / "pictures"
    recipe.pictures.world = "landscapes-v2"
    with pytest.raises(
        UserError, match="holds pictures of other settings .world: landscapes there, landscapes-v2 here"
    ):
        draw_pictures(recipe)


def test_resuming_with_other_settings_is_refused_and_latents_are_of_the_new_vae(tmp_path, capsys):
    recipe = tiny_recipe(tmp_path)
    recipe.vae.optim.steps = recipe.transformer.optim.steps = 1
    run(recipe)
    before = np.load(tmp_path / "latents.npy")
    recipe.seed = 1
    with pytest.raises(UserError, match=r"vae stage with other settings \(seed: 0 there, 1 here\)"):
        run(recipe, resume=True)
    run(recipe, resume=False)
    assert "latents.npy is made anew (vae_sha256: " in capsys.readouterr().err
    after = np.load(tmp_path / "latents.npy")
    teacher = load_teacher(tmp_path / "pipeline")
    with torch.no_grad():
        wanted = teacher.encode(
            from_uint8(load_world("landscapes").render_batch(range(1_000_000, 1_000_012), 64, 64))
        ).numpy()
    assert np.abs(after - wanted).max() < 2e-2 < np.abs(before - wanted).max()  # the weights kept are fp16


def test_compiling_without_a_compiler_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("l2p.training.teacher.shutil.which", lambda name: None)
    recipe = TeacherRecipe(output_dir=str(tmp_path / "run"))
    recipe.transformer.compile = True
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler.*compile=false"):
        run(recipe)
    assert not (tmp_path / "run").exists()
