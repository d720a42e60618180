"""Growing's batches and terms, and a run from a student's folder to the grown one's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from l2p.errors import UserError
from l2p.evaluation.saved import evaluate_folder
from l2p.landscapes import Scene, render
from l2p.recipe import load_recipe
from l2p.students.io import load_student, save_student
from l2p.students.origin import teacher_config
from l2p.students.pipeline import load_texts
from l2p.teachers import load_teacher
from l2p.training import grow, grow_data


def test_energy_wants_texture_and_not_the_same_texture():
    texture, other = torch.randn(2, 1, 3, 64, 64) * 0.2
    blurred = F.avg_pool2d(F.pad(texture, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    assert grow.energy_distance(texture, texture) == 0
    assert grow.energy_distance(blurred, texture) > 3 * grow.energy_distance(other, texture)


@pytest.fixture(scope="module")
def small_student(tmp_path_factory, tiny_pipeline):
    from l2p.lift import Lift
    from l2p.recipe import StudentConfig
    from l2p.students.build import from_teacher
    from l2p.students.io import save_student

    teacher = load_teacher(tiny_pipeline)
    basis = torch.linalg.qr(torch.randn(768, 64, dtype=torch.float64))[0]
    lift = Lift(
        basis, scale=0.4, offset=torch.zeros(768, dtype=torch.float64), r2=0.0, r2_lstsq=0.0, r2_pca=0.0
    )
    folder = tmp_path_factory.mktemp("small") / "student"
    config = StudentConfig()
    config.head.width, config.head.num_blocks = 32, 1
    save_student(from_teacher(teacher, lift, config, (32, 32)), folder, text_encoder=teacher.text_encoder)
    return folder


def recipe_for(tmp_path, small, teacher, *more):
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "recipe.yaml"
    path.write_text("name: grown\npictures: {sizes: [[64, 64], [72, 40]]}\n")
    short = [f"output_dir={tmp_path / 'run'}", f"student={small}", f"teacher={teacher}", "factor=2", "preview_images=1",
             "head.width=32", "head.num_blocks=1", "optim.batch_size=2", "optim.checkpoint_every=2", "dtype=fp32",
             "threads=1", *more]  # fmt: skip
    return load_recipe(path, short, schema=grow.GrowRecipe)


def test_a_run_and_its_resumption(tmp_path, small_student, tiny_pipeline):
    recipe = recipe_for(tmp_path, small_student, tiny_pipeline, "optim.steps=2")
    folder = grow.run(recipe)
    grown, small = load_student(folder), load_student(small_student)
    assert grown.spec.patch_size == 32 and (grown.spec.height, grown.spec.width) == (64, 64)
    assert (tmp_path / "run" / "previews" / "grow-000002.png").is_file()
    for name, value in small.head.state_dict().items():  # frozen
        assert torch.equal(grown.head.inner.state_dict()[name], value), name
    folder = tmp_path / "run" / "student"
    assert teacher_config(folder).path == str(tiny_pipeline)
    with pytest.raises(UserError, match="was grown beyond its teacher.*--against FOLDER"):
        evaluate_folder(folder)
    retrained = tmp_path / "retrained"
    small.head.conv_out.bias.data += 0.1
    save_student(small, retrained, load_texts(small_student, small.spec))
    with pytest.raises(UserError, match=r"grow stage with other settings \(student: .*student.sha256: "):
        grow.run(recipe_for(tmp_path, retrained, tiny_pipeline, "optim.steps=2"))
    for change, said in (
        ("seed=1", "seed: 0 there, 1 here"),
        ("terms.pixel=2", "terms.pixel: 1.0 there, 2.0 here"),
        ("optim.steps=1", "is of step 2, beyond the 1 steps"),
    ):
        with pytest.raises(UserError, match=said):
            grow.run(recipe_for(tmp_path, small_student, tiny_pipeline, "optim.steps=2", change))
    again = grow.run(recipe_for(tmp_path, small_student, tiny_pipeline, "optim.steps=4"))
    assert not torch.equal(load_student(again).head.conv_out.weight, grown.head.conv_out.weight)


def test_bands_and_checkpoints_train_the_same(tmp_path, small_student, tiny_pipeline):
    trained = []
    for more in ([], ["band_height=16", "gradient_checkpointing=true"]):
        recipe = recipe_for(tmp_path / str(len(more)), small_student, tiny_pipeline, "optim.steps=2", *more)
        trained.append(load_student(grow.run(recipe)).head.state_dict())
    for name, whole in trained[0].items():
        torch.testing.assert_close(trained[1][name], whole, rtol=1e-3, atol=1e-5, msg=name)


def test_batches_are_renders_and_what_ties_the_student_to_them(tmp_path, small_student, tiny_pipeline):
    recipe = recipe_for(tmp_path, small_student, tiny_pipeline, "pictures.noise=0", "pictures.patch_steps=0", "pictures.blur_low=0", "pictures.blur_high=0")  # fmt: skip
    from l2p.students.grow import grow as grow_student

    student = grow_student(load_student(small_student), 2, {"fine_patch": 8, "width": 32, "head_dim": 16})
    source = grow_data.Batches(recipe, [(64, 64), (72, 40)], student, load_teacher(tiny_pipeline), torch.device("cpu"), torch.float32)  # fmt: skip
    x, (noise, t, words, draft) = source.batch(1)
    assert x.shape == noise.shape == (2, 3, 96, 64) and len(words) == 2  # whole patches of 32
    first = (
        torch.from_numpy(render(Scene.from_seed(grow_data.FIRST_SCENE + 2), 96, 64)).permute(2, 0, 1) / 127.5
        - 1
    )
    torch.testing.assert_close(x[0], first, rtol=0, atol=1e-5)
    torch.testing.assert_close(draft, F.avg_pool2d(x, 2), rtol=0, atol=1e-5)
    again = source.batch(1)[1]
    assert torch.equal(noise, again[0]) and torch.equal(draft, again[3])
    assert not torch.equal(source.batch(3)[1][0], noise)


@pytest.fixture
def photos(tmp_path):
    """Six pictures larger than the batches', with captions, and one that is too small."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        grey = np.full((150 + i, 120, 3), 40 * i, np.uint8)
        Image.fromarray(grey).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"grey {i}\n")
    Image.fromarray(np.zeros((60, 200, 3), np.uint8)).save(folder / "small.png")
    return folder


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_photographs_are_mixed_in_at_their_share(tmp_path, small_student, tiny_pipeline, photos, share):
    recipe = recipe_for(tmp_path, small_student, tiny_pipeline, f"pictures.photos=[{photos}]", f"pictures.photo_share={share}")  # fmt: skip
    from l2p.students.grow import grow as grow_student

    student = grow_student(load_student(small_student), 2, {"fine_patch": 8, "width": 32, "head_dim": 16})
    source = grow_data.Batches(recipe, [(64, 64), (72, 40)], student, load_teacher(tiny_pipeline), torch.device("cpu"), torch.float32)  # fmt: skip
    assert source.photos.too_small == 1
    pictures, captions = source.pictures(range(24), (64, 96))
    seen = [caption for caption in captions if caption.startswith("grey")]
    assert len(seen) == 24 * share
    assert set(seen[:6]) == {f"grey {i}" for i in range(6)}  # each once before any comes again
    for picture, text in zip(pictures, captions, strict=True):
        if text.startswith("grey"):
            assert (picture == 40 * int(text[-1])).all()
    parts = [source.pictures(range(i, i + 2), (64, 96)) for i in (22, 0, 10)]  # in any order and batch
    assert [part[1] for part in parts] == [captions[22:24], captions[0:2], captions[10:12]]
    label, _, texts, _ = source.examples(2)
    assert ("photograph" in label) == (share == 1) == texts[0].startswith("grey")
    x, given = source.batch(0)
    assert x.shape == (2, 3, 64, 64) and given[3].shape == (2, 3, 32, 32)
