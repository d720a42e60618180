"""Training a decoder end to end, in miniature: it runs, resumes, and its batches are what they say."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from l2p.decoders.io import load_decoder, save_decoder
from l2p.errors import UserError
from l2p.images import from_uint8
from l2p.recipe import HeadConfig
from l2p.training import pid
from l2p.training.pid_data import NoiseConfig, PidDataset, collate, folder_pictures


def tiny_recipe(folder, teacher: str, **changes) -> pid.PidRecipe:
    common = {"steps": 2, "batch_size": 2, "warmup_steps": 0, "checkpoint_every": 1, "preview_every": 100}
    terms = {
        "pairs": {"latent": 0, "perceptual_fraction": 0.5},
        "color": {"cells": [4, 16]},
        "spectrum": {},
        "latents": {},
    }
    recipe = pid.PidRecipe(
        name="tiny",
        output_dir=str(folder),
        dtype="fp32",
        device="cpu",
        threads=1,
        teacher=teacher,
        student=pid.DecoderConfig(
            scale=2,
            adapter_width=8,
            features=8,
            head=HeadConfig(fine_patch=4, width=16, num_blocks=1, head_dim=16, tile=4, halo=2),
        ),
        pictures=pid.PidPictures(count=4, height=64, width=64, crop=32),
        flow=pid.PidStage(**common, num_steps=2, objectives={"flow": {}, "latents": {}}),
        few_step=pid.PidStage(**common, num_steps=2, objectives=terms),
        one_step=pid.PidStage(**common, objectives={**terms, "adversarial": {"weight": 0.1, "width": 8}}),
        preview_images=1,
    )
    for name, value in changes.items():
        setattr(recipe, name, value)
    return recipe


@pytest.fixture(autouse=True)
def few_renders(monkeypatch):
    from l2p.training import teacher

    monkeypatch.setattr(teacher, "CHUNK", 4)


def test_three_stages_and_what_a_rerun_does(tmp_path, tiny_pipeline):
    recipe = tiny_recipe(tmp_path, tiny_pipeline)
    folder = pid.run(recipe, progress=False)
    decoder = load_decoder(folder)
    assert decoder.spec.num_steps == 1 and decoder.spec.scale == 2
    assert {p.name for p in folder.iterdir()} >= {"training.json", "flow-log.csv", "one_step-log.csv"}
    assert all(torch.isfinite(p).all() for p in decoder.parameters())
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    (tmp_path / "stages" / "one_step.json").unlink()  # as if it had been stopped after its last step
    pid.run(recipe, progress=False)
    again = load_decoder(folder).state_dict()
    assert all(torch.equal(again[name], value) for name, value in before.items())
    with pytest.raises(UserError, match="flow.learning_rate: 0.001 there, 0.5 here"):
        pid.run(tiny_recipe(tmp_path, tiny_pipeline, flow=pid.PidStage(learning_rate=0.5, steps=2, objectives={"flow": {}})), progress=False)  # fmt: skip


def test_latents_are_kept_for_the_pictures_and_the_vae_that_they_are_of(tmp_path, tiny_pipeline, capsys):
    def latents(**changes):
        recipe = tiny_recipe(tmp_path, tiny_pipeline)
        for name, value in changes.items():
            setattr(recipe.pictures, name, value)
        folder = pid.PidFolder(tmp_path, asdict(recipe))
        return pid.PidRun(recipe, folder, torch.device("cpu"), torch.float32).latents

    first = latents()
    assert torch.equal(latents(), first) and "latents.npy" not in capsys.readouterr().err
    (tmp_path / "pictures" / "64x64.npy").unlink()
    other = latents(first_seed=pid.FIRST_SCENE + 4)
    assert "latents.npy is made anew (first_seed: " in capsys.readouterr().err
    assert not torch.equal(other, first)


def test_a_frozen_core_keeps_the_teachers_weights(tmp_path, tiny_pipeline):
    recipe = tiny_recipe(tmp_path, tiny_pipeline)
    recipe.student.train_core = False
    run = pid.PidRun(recipe, pid.PidFolder(tmp_path, asdict(recipe)), torch.device("cpu"), torch.float32)
    student = run.new_student()
    trains = {name.split(".")[0] for name, p in student.named_parameters() if p.requires_grad}
    assert trains == {"core", "latent_in", "adapter", "final", "narrow", "head"}
    free = [name for name, p in student.core.named_parameters() if p.requires_grad]
    assert free and all("x_embedder" in name or "span_embedder" in name for name in free)


def test_a_decoder_to_go_on_from(tmp_path, tiny_pipeline):
    def new_student(weights=None, features=8):
        recipe = tiny_recipe(tmp_path, tiny_pipeline)
        recipe.student.weights, recipe.student.features, recipe.student.train_core = weights, features, False
        return pid.PidRun(
            recipe, pid.PidFolder(tmp_path, asdict(recipe)), torch.device("cpu"), torch.float32
        ).new_student()

    fresh = new_student()
    torch.nn.init.constant_(fresh.head.conv_out.bias, 0.5)
    save_decoder(fresh, tmp_path / "kept", {})
    filled = new_student(str(tmp_path / "kept"))
    assert torch.equal(filled.head.conv_out.bias, fresh.head.conv_out.bias)
    trains = [
        {key for key, p in student.named_parameters() if p.requires_grad} for student in (fresh, filled)
    ]
    assert trains[0] == trains[1]
    with pytest.raises(UserError, match="kept"):
        new_student(str(tmp_path / "kept"), features=16)


def test_items_are_functions_of_their_number_and_crops_match_their_latents(tmp_path, tiny_pipeline):
    recipe = tiny_recipe(tmp_path, tiny_pipeline)
    run = pid.PidRun(recipe, pid.PidFolder(tmp_path, asdict(recipe)), torch.device("cpu"), torch.float32)
    spec = run.new_student().spec
    pictures = np.arange(4 * 64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 64, 64, 3)
    latents = torch.arange(4.0)[None, :, None, None, None].expand(1, 4, 16, 4, 4)  # each tells its picture
    made = [
        PidDataset(pictures, latents, lambda n, style: f"{n}", spec, NoiseConfig(), 32, 5, "flow", 64, 0.0)
        for _ in range(2)
    ]
    levels = []
    for index in range(64):
        item, again = (dataset[index] for dataset in made)
        assert all(np.array_equal(item[key], again[key]) for key in item)
        (row, column), number = item["window"], int(item["latent"][0, 0, 0])
        wanted = pictures[number, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        assert np.array_equal(item["image"], wanted) and item["prompt"] in ("", str(number))
        levels.append(item["sigma"])
    assert 0.5 < np.mean([level > 0 for level in levels]) < 0.95 and max(levels) == 1.0
    batch = collate([made[0][i] for i in range(4)])
    clean = batch["sigma"] == 0
    assert torch.equal(batch["noisy"][clean], batch["latents"][clean])
    assert batch["noise"].shape == (4, 3, 32, 32)


def test_pictures_of_a_folder(tmp_path, capsys):
    from l2p.images import save_png

    rng = np.random.default_rng(0)
    for name in "ab":
        save_png(rng.integers(0, 255, (64, 64, 3), np.uint8), tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text("a house\n")
    pictures, captions = folder_pictures(tmp_path, 64, 64, tmp_path / "kept.npy")
    assert pictures.shape == (2, 64, 64, 3) and captions == ["", "a house"]
    assert from_uint8(pictures[:1]).shape == (1, 3, 64, 64)
    with pytest.raises(UserError, match="smaller than 128"):
        folder_pictures(tmp_path, 128, 64, tmp_path / "other.npy")
    other = rng.integers(0, 255, (64, 64, 3), np.uint8)
    save_png(other, tmp_path / "a.png")
    again, _ = folder_pictures(tmp_path, 64, 64, tmp_path / "kept.npy")  # made anew
    assert np.array_equal(again[0], other) and np.array_equal(again[1], pictures[1])
    assert "kept.npy is made anew (files_sha256: " in capsys.readouterr().err


def test_what_cannot_be_trained_is_told_first(tmp_path):
    def refuse(said: str, **changes) -> None:
        with pytest.raises(UserError, match=said):
            pid.check(tiny_recipe(tmp_path, "landscapes", **changes))

    refuse("few_step: objectives.pairs.latent", few_step=pid.PidStage(objectives={"pairs": {}}))
    refuse(
        "flow: objectives.mean_flow is for students without", flow=pid.PidStage(objectives={"mean_flow": {}})
    )
    refuse("pictures.crop is 96", pictures=pid.PidPictures(height=64, width=64, crop=96))
