"""The shipped judge on fresh renders; its features must see what the attributes do not; its training and its file."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from l2p.errors import UserError
from l2p.evaluation.figures import Figures
from l2p.evaluation.judge import BUNDLED, FEATURES, Judge, load_judge, save_judge
from l2p.images import from_uint8
from l2p.landscapes import ATTRIBUTES, Scene, load_world, render_batch
from l2p.recipe import load_recipe
from l2p.training.judge import JudgeRecipe, augment, train

SEEDS = range(9_100_000, 9_100_064)


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def renders():
    return from_uint8(render_batch(SEEDS, 128, 128))


@pytest.fixture(scope="module")
def labels():
    return torch.from_numpy(np.stack([Scene.from_seed(seed).labels for seed in SEEDS]))


def frechet(judge, images) -> float:
    figures = Figures(judge, (16,))
    figures.update(images)
    return figures.frechet_to_real


def soften(images):
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return F.conv2d(
        F.pad(images, (2, 2, 2, 2), mode="replicate"), torch.outer(taps, taps).expand(3, 1, 5, 5), groups=3
    )


def test_the_shipped_judge_is_right_on_fresh_renders_and_says_how_right(judge, renders, labels):
    assert judge.report["accuracy"] > 0.97 and judge.report["test_images"] >= 1000
    assert set(judge.report["accuracy_by_attribute"]) == set(ATTRIBUTES)
    assert BUNDLED.stat().st_size < 4e6
    accuracy = (judge.predict(renders) == labels).double().mean()
    assert accuracy > 0.97
    # sixty-four renders are few, and this is what they allow
    assert accuracy == pytest.approx(judge.report["accuracy"], abs=0.02)


def test_it_bears_softness_shifts_and_other_sizes(judge, renders, labels):
    for changed in (
        soften(renders),
        torch.roll(renders, (2, -2), (2, 3)),
        (renders * 1.08 + 0.05).clamp(-1, 1),
    ):
        assert (judge.predict(changed) == labels).double().mean() > 0.95
    larger = from_uint8(render_batch(SEEDS[:16], 192, 192))
    assert (judge.predict(larger) == labels[:16]).double().mean() > 0.95


def test_the_features_see_softness_tint_and_missing_variety(judge, renders):
    clean = frechet(judge, renders)
    small = F.interpolate(renders, scale_factor=0.25, mode="bilinear", antialias=True)
    assert frechet(judge, F.interpolate(small, scale_factor=4.0, mode="bilinear")) > 1.5 * clean
    tinted = (renders + torch.tensor([0.12, 0.0, -0.12])[None, :, None, None]).clamp(-1, 1)
    assert frechet(judge, tinted) > 1.1 * clean
    assert frechet(judge, renders[:8].repeat(8, 1, 1, 1)) > 1.3 * clean
    assert judge.features(renders).shape == (64, FEATURES)
    # the reference is scaled so that real renders have a mean feature variance of one
    assert judge.reference_covariance.trace() / FEATURES == pytest.approx(1.0, rel=1e-3)


def test_augmentation_keeps_shape_range_and_reports_its_strength(renders):
    generator = torch.Generator().manual_seed(0)
    images, damage = augment(renders[:32], generator)
    assert images.shape == renders[:32].shape and images.abs().max() <= 1
    assert damage.shape == (32, 2) and 0 <= damage.min() and damage.max() <= 1
    again, _ = augment(renders[:32], torch.Generator().manual_seed(0))
    assert torch.equal(images, again)
    # averaged over 4 x 4 blocks the picture is still there: light damage
    pool = lambda x: F.avg_pool2d(x, 4)  # noqa: E731
    assert (pool(images) - pool(renders[:32])).abs().mean() < 0.12


def test_a_short_training_writes_a_judge_that_loads(tmp_path):
    recipe = load_recipe("recipes/judge-landscapes.yaml", [], JudgeRecipe)
    assert recipe == JudgeRecipe(output_dir="runs/judge-landscapes")
    recipe = JudgeRecipe(
        output_dir=str(tmp_path / "judge"),
        num_images=48,
        num_test_images=20,
        epochs=2,
        batch_size=16,
        device="cpu",
    )
    path = train(recipe)
    judge = load_judge(path)
    assert judge.report["test_images"] == 20 and judge.report["recipe"]["epochs"] == 2
    rows = (tmp_path / "judge" / "training.csv").read_text().splitlines()
    assert set(rows[0].split(",")) >= {"step", "loss", "seconds"} and len(rows) == 1 + 2 * 3
    images = torch.rand(2, 3, 128, 128) * 2 - 1
    save_judge(judge, tmp_path / "copy.safetensors")
    assert torch.equal(load_judge(tmp_path / "copy.safetensors").features(images), judge.features(images))


def test_a_judge_of_the_second_world_at_its_own_size(tmp_path):
    recipe = load_recipe("recipes/judge-landscapes-256.yaml", [], JudgeRecipe)
    assert (recipe.world, recipe.size) == ("landscapes-v2", 256)
    recipe = JudgeRecipe(
        output_dir=str(tmp_path / "judge"),
        world="landscapes-v2",
        size=96,
        num_images=32,
        num_test_images=20,
        epochs=1,
        batch_size=16,
        device="cpu",
    )
    judge = load_judge(train(recipe))
    assert judge.size == 96 and judge.report["recipe"]["world"] == "landscapes-v2"
    images = torch.rand(2, 3, 192, 192) * 2 - 1
    small = F.interpolate(images, (96, 96), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(judge.features(images), judge.features(small))
    # The reference of its Frechet distances is of that world: its mean is that of fresh renders' features.
    renders = from_uint8(load_world("landscapes-v2").render_batch(range(6_000_000, 6_000_020), 96, 96))
    torch.testing.assert_close(judge.features(renders).mean(0), judge.reference_mean, rtol=1e-3, atol=1e-3)


def test_foreign_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="train one"):
        load_judge(tmp_path / "none.safetensors")
    path = tmp_path / "broken.safetensors"
    path.write_bytes(BUNDLED.read_bytes()[:5000])
    with pytest.raises(UserError, match="no judge of this version"):
        load_judge(path)
    save_judge(Judge((8, 8, 8)), path)
    assert load_judge(path).widths == (8, 8, 8)
    monkeypatch.setitem(ATTRIBUTES, "sky", ("clear", "stormy"))
    with pytest.raises(UserError, match="other attributes"):
        load_judge(path)
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        Judge((8, 8, 8)).embed(torch.zeros(1, 1, 128, 128))
