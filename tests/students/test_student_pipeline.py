"""Prompt to pictures: seeds, sizes, batches, and mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import l2p
from l2p import flow
from l2p.errors import UserError
from l2p.images import to_uint8
from l2p.noise import pixel_noise
from l2p.students.build import from_teacher
from l2p.students.io import save_student
from l2p.students.pipeline import StudentPipeline
from l2p.students.resolve import resolve_student

PROMPTS = ["a red house by a lake", "snow at night under many bright stars"]


@pytest.fixture(scope="module")
def pipeline(teacher, lift, student_config) -> StudentPipeline:
    return StudentPipeline(
        from_teacher(teacher, lift, student_config("patch"), size=(32, 48)), teacher.text_encoder
    )


def same(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_pictures_are_of_their_prompts_and_seeds(pipeline):
    images = pipeline.generate(PROMPTS, seeds=[5, 40], num_images=2)
    assert [image.info["seed"] for image in images] == [5, 6, 40, 41]
    assert [image.info["prompt"] for image in images] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert all(image.size == (48, 32) and image.mode == "RGB" for image in images)
    noise = pixel_noise("philox", [40], 32, 48, pipeline.student.basis)
    expected = to_uint8(pipeline.sample(pipeline.text_encoder(PROMPTS[1:]), noise))
    difference = np.asarray(images[2]).astype(int) - expected[0]
    assert abs(difference).max() <= 1  # a batch of four and a batch of one may round apart
    assert not same(images[:1], images[1:2])


def test_each_student_keeps_its_noise(pipeline, teacher):
    """New ones Philox's; those from before there was a choice torch's, so that a seed stays the picture that it was."""
    assert pipeline.noise_generator == "philox"
    noise = l2p.load(resolve_student("landscapes-128"), device="cpu").noise([7], 120, 128)
    assert torch.equal(noise.rows(0, 128), flow.noise([7], 3, 128, 128))
    one = StudentPipeline(pipeline.student, teacher.text_encoder)
    one.noise_generator = "mt19937"
    drawn = one.generate(PROMPTS[:1], seeds=[4])
    expected = to_uint8(one.sample(one.text_encoder(PROMPTS[:1]), flow.noise([4], 3, 32, 48)))
    assert abs(np.asarray(drawn[0]).astype(int) - expected[0]).max() <= 1
    assert not same(drawn, pipeline.generate(PROMPTS[:1], seeds=[4]))


def test_one_seed_serves_all_prompts_and_none_is_fresh(pipeline):
    images = pipeline.generate(PROMPTS, seeds=3)
    assert [image.info["seed"] for image in images] == [3, 3]
    assert same(images, pipeline.generate(PROMPTS, seeds=3))
    fresh = {pipeline.generate(PROMPTS[0])[0].info["seed"] for _ in range(3)}
    assert len(fresh) == 3


@pytest.mark.parametrize("size", [(8, 8), (40, 24), (64, 16)])
def test_any_multiple_of_eight(pipeline, size):
    (image,) = pipeline.generate(PROMPTS[0], seeds=1, height=size[0], width=size[1])
    assert image.size == (size[1], size[0])


def test_sizes_between_patches_are_cut_from_whole_patches(pipeline):
    (image,) = pipeline.generate(PROMPTS[0], seeds=1, height=24, width=40)
    (whole,) = pipeline.generate(PROMPTS[0], seeds=1, height=32, width=48)
    assert np.array_equal(np.asarray(image), np.asarray(whole)[:24, :40])


def test_batches_do_not_change_the_pictures(pipeline):
    together = pipeline.generate(PROMPTS, seeds=1, num_images=2)
    apart = pipeline.generate(PROMPTS, seeds=1, num_images=2, batch_size=3, progress=True)
    for a, b in zip(together, apart, strict=True):
        assert abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


def test_steps_change_the_picture(pipeline):
    assert not same(
        pipeline.generate(PROMPTS[0], seeds=1), pipeline.generate(PROMPTS[0], seeds=1, num_steps=2)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 7}, "height must be a positive multiple of 8, got 7: try 8"),
        ({"width": -16}, "width must be a positive multiple of 8, got -16"),
        ({"width": 0}, "width must be"),
        ({"height": 4096}, "draw smaller"),
        ({"num_images": 0}, "num_images must be 1 or more, got 0"),
        ({"num_steps": 0}, "num_steps must be 1 or more"),
        ({"seeds": -1}, "seeds must be 0 or more"),
        ({"seeds": [1, 2]}, "one for each of the 1 prompts, got 2"),
        ({"prompts": []}, "nothing to draw"),
    ],
)
def test_mistakes_are_one_clear_line(pipeline, arguments, message):
    with pytest.raises(UserError, match=message):
        pipeline.generate(**{"prompts": PROMPTS[0], "seeds": 1, **arguments})


def test_a_student_without_a_size_asks_for_one(teacher, lift, student_config):
    pipeline = StudentPipeline(from_teacher(teacher, lift, student_config("linear")), teacher.text_encoder)
    with pytest.raises(UserError, match="records no height"):
        pipeline.generate(PROMPTS[0])
    assert len(pipeline.generate(PROMPTS[0], height=32, width=32)) == 1


def test_loaded_from_disk_it_draws_the_same(pipeline, tmp_path):
    save_student(pipeline.student, tmp_path / "student", pipeline.text_encoder)
    loaded = l2p.load(tmp_path / "student", device="cpu", dtype="fp32")
    assert same(loaded.generate(PROMPTS, seeds=2), pipeline.generate(PROMPTS, seeds=2))
    rough = l2p.load(tmp_path / "student", device="cpu", dtype="bf16").generate(PROMPTS[0], seeds=2)[0]
    exact = pipeline.generate(PROMPTS[0], seeds=2)[0]
    assert rough.size == exact.size
    assert np.abs(np.asarray(rough).astype(int) - np.asarray(exact)).mean() < 2


def test_a_student_without_text_encoder_says_so(pipeline, tmp_path):
    save_student(pipeline.student, tmp_path / "student")
    with pytest.raises(UserError, match="text_encoder"):
        l2p.load(tmp_path / "student", device="cpu")


def test_memory_is_not_kept_for_gradients(pipeline):
    noise = flow.noise([1], 3, 32, 48)
    assert not pipeline.sample(pipeline.text_encoder(PROMPTS[:1]), noise).requires_grad
    assert torch.is_grad_enabled()
