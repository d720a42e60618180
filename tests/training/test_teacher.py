"""The teacher's training, end to end on a few pictures, and its loop's promise to resume exactly."""

from __future__ import annotations

import csv
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

from l2p import flow
from l2p.errors import UserError
from l2p.landscapes import load_world
from l2p.teachers import build, load_teacher
from l2p.training.loop import OptimConfig, fit
from l2p.training.teacher import (
    PicturesConfig,
    TeacherRecipe,
    TransformerTraining,
    VAETraining,
    draw_pictures,
    encode_pictures,
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


def test_pictures_and_latents_of_something_else_are_refused(tmp_path):
    recipe = tiny_recipe(tmp_path)
    assert draw_pictures(recipe) == tmp_path / "pictures"
    recipe.pictures.world = "landscapes-v2"
    with pytest.raises(UserError, match="holds pictures of another world, fingerprint"):
        draw_pictures(recipe)
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        vae = build.build_vae(build.VAESizes([8, 8]), 16)
        encode = partial(
            encode_pictures, vae, pictures, tmp_path / "latents.npy", torch.device("cpu"), nullcontext
        )
        if seed == 0:
            assert encode().shape == (2, 16, 8, 8)
    with pytest.raises(UserError, match="holds latents of another vae"):
        encode()


def linear_problem(folder, steps: int, until: int | None = None):
    """Fit y = 2 x; with `until` the loss raises there, as a kill would."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))

    def loss(step: int) -> dict[str, torch.Tensor]:
        if step == until:
            raise InterruptedError
        x = flow.noise([step], 1, 8, 4)[0, 0]
        return {"mse": (network(x) - 2 * x).pow(2).mean()}

    config = OptimConfig(
        steps=steps, learning_rate=1e-2, optimizer="muon", warmup_steps=2, checkpoint_every=5
    )
    fit(network, loss, config, folder, "linear")
    return network


def test_a_killed_loop_resumes_the_very_same_weights_and_log(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir(), killed.mkdir()
    expected = linear_problem(straight, 20)
    with pytest.raises(InterruptedError):
        linear_problem(killed, 20, until=13)
    found = linear_problem(killed, 20)
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    steps = [row["step"] for row in csv.DictReader((killed / "linear.csv").open())]
    assert steps == ["10", "20"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    network = torch.nn.Linear(2, 2)
    config = OptimConfig(steps=5, optimizer="adamw")
    with pytest.raises(UserError, match="not finite at step 0"):
        fit(network, lambda step: {"mse": network.weight.sum() * float("nan")}, config, tmp_path, "nan")


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path):
    linear_problem(tmp_path, 5)
    other = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))
    with pytest.raises(UserError, match="other settings"):
        fit(other, lambda step: {}, OptimConfig(steps=9, optimizer="muon"), tmp_path, "linear")


def test_compiling_without_a_compiler_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("l2p.training.teacher.shutil.which", lambda name: None)
    recipe = TeacherRecipe(output_dir=str(tmp_path / "run"))
    recipe.transformer.compile = True
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler.*compile=false"):
        run(recipe)
    assert not (tmp_path / "run").exists()
