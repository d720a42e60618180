"""Training a head without a core, end to end: it learns, and a student starts with what it learnt."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from l2p.errors import UserError
from l2p.images import from_uint8
from l2p.landscapes import render_batch
from l2p.lift import Lift
from l2p.recipe import HeadConfig, StudentConfig
from l2p.students.build import from_teacher
from l2p.students.heads.pretrained import own_state
from l2p.teachers import load_teacher
from l2p.training.engine.task import OptimConfig
from l2p.training.head import HeadRecipe, run
from l2p.training.teacher import PicturesConfig

HEAD = HeadConfig(fine_patch=8, width=32, num_blocks=1, head_dim=16, tile=4, halo=2)


def tiny_recipe(folder, teacher: str, steps: int = 12) -> HeadRecipe:
    optim = OptimConfig(
        steps=steps, batch_size=8, learning_rate=3e-3, warmup_steps=1, checkpoint_every=6, optimizer="muon"
    )
    return HeadRecipe(
        name="tiny",
        output_dir=str(folder),
        dtype="fp32",
        teacher=teacher,
        pictures=PicturesConfig(count=12, height=64, width=64),
        readout_images=12,
        head=HEAD,
        crop=32,
        optim=optim,
    )


def test_a_head_learns_and_a_student_starts_with_it(tmp_path, tiny_pipeline):
    folder = run(tiny_recipe(tmp_path, str(tiny_pipeline)))
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors", "training.json"}
    rows = list(csv.DictReader((folder / "head-log.csv").open()))
    assert rows and float(rows[-1]["pixel"]) > 0
    teacher = load_teacher(tiny_pipeline)
    basis = torch.linalg.qr(torch.randn(768, teacher.geometry.token_dim, dtype=torch.float64))[0]
    lift = Lift(basis, 0.4, torch.zeros(768, dtype=torch.float64), 0.8, 0.9, 0.95)
    with pytest.raises(UserError, match="has width 32, this student 64"):
        from_teacher(
            teacher,
            lift,
            StudentConfig(head=HeadConfig(**{**vars(HEAD), "width": 64, "pretrained": str(folder)})),
        )
    student = from_teacher(
        teacher, lift, StudentConfig(head=HeadConfig(**{**vars(HEAD), "pretrained": str(folder)}))
    )
    assert own_state(student.head)["conv_out.weight"].abs().max() > 0  # zero in a fresh head
    assert not student.head.open.weight.any()


def test_other_settings_are_refused_and_other_pictures_encoded_anew(tmp_path, tiny_pipeline, capsys):
    recipe = tiny_recipe(tmp_path, str(tiny_pipeline), steps=1)
    run(recipe)
    recipe.seed = 1
    with pytest.raises(UserError, match=r"head stage with other settings \(seed: 0 there, 1 here\)"):
        run(recipe, resume=True)
    before = np.load(tmp_path / "latents.npy")
    recipe.pictures.first_seed += 12
    with pytest.raises(
        UserError, match=r"64x64.npy holds pictures of other settings \(first_seed: .*: delete it"
    ):
        run(recipe, resume=False)
    (tmp_path / "pictures" / "64x64.npy").unlink()
    capsys.readouterr()
    run(recipe, resume=False)
    said = "latents.npy is made anew (pictures.first_seed: 1000000 there, 1000012 here)"
    assert said in capsys.readouterr().err
    after = np.load(tmp_path / "latents.npy")
    teacher = load_teacher(tiny_pipeline)
    with torch.no_grad():
        wanted = teacher.encode(from_uint8(render_batch(range(1_000_012, 1_000_024), 64, 64)))
    assert np.abs(after - wanted.numpy()).max() < 2e-3 < np.abs(before - after).max()
