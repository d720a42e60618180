"""What a student is asked for and was not trained for brings a warning with the trained value."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest

from l2p.errors import UserNotice
from l2p.students.pipeline import StudentPipeline, load
from l2p.students.usage import prompt_notes, usage_notes, world_of


def spec(num_steps=1, guidance_scale=1.0, height=128, width=128):
    return SimpleNamespace(num_steps=num_steps, guidance_scale=guidance_scale, height=height, width=width)


@pytest.mark.parametrize(
    ("student", "asked", "message"),
    [
        (spec(), {"num_steps": 50}, "50 steps asked of a student that was trained for 1"),
        (spec(num_steps=30), {"num_steps": 4}, "4 steps asked of a student that was trained for 30"),
        (spec(), {"guidance_scale": 4.0}, "guidance scale 4 asked of a student that was trained without"),
        (spec(), {"height": 512}, "height 512 asked of a student that was trained at 128 x 128"),
        (spec(), {"height": 128, "width": 64}, "width 64 asked"),
    ],
)
def test_what_it_was_not_trained_for(student, asked, message):
    (note,) = usage_notes(student, **asked)
    assert message in note


@pytest.mark.parametrize(
    ("student", "asked"),
    [
        (spec(), {}),
        (spec(), {"num_steps": 1, "guidance_scale": 1.0, "height": 128, "width": 144}),
        (spec(num_steps=30, guidance_scale=4.0), {"num_steps": 20, "guidance_scale": 3.0}),
        (spec(height=None, width=None), {"height": 4096}),
    ],
)
def test_what_it_was_trained_for_is_silent(student, asked):
    assert usage_notes(student, **asked) == []


def test_prompts_from_outside_the_world():
    assert prompt_notes("landscapes", ["a red house by a lake at dusk", ""]) == []
    (note,) = prompt_notes("landscapes", ["a robot", "a lake", "a cat on a sofa"])
    assert "'a robot' and 1 more" in note and "a red house by a lake at dusk" in note
    assert prompt_notes(None, ["a robot"]) == prompt_notes("prompts.txt", ["a robot"]) == []


@pytest.mark.parametrize(
    "config", [{}, {"recipe": 3}, {"recipe": {"corpus": []}}, {"recipe": {"corpus": {"prompts": 1}}}]
)
def test_a_config_that_does_not_say_its_world(config):
    assert world_of(config) is None


def test_the_bundled_student_knows_its_world_and_its_pipeline_warns():
    from l2p.students.resolve import resolve_student

    pipeline = load(resolve_student("landscapes-128"), "cpu", "fp32")
    assert isinstance(pipeline, StudentPipeline) and pipeline.world == "landscapes"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.generate("a red house by a lake at dusk", seeds=7)
    with pytest.warns(UserNotice) as caught:
        pipeline.generate("a robot", seeds=7, num_steps=2, height=32, width=32)
    lines = [str(warning.message) for warning in caught]
    assert [line.split(" ")[0] for line in lines if " asked of " in line or "names nothing" in line] == [
        "2",
        "height",
        "the",
    ]


def test_a_prompt_beyond_what_is_read_keeps_the_template_s_end():
    from l2p.students.resolve import resolve_student
    from l2p.teachers import load_text_encoder
    from l2p.teachers.text import MAX_TOKENS

    encoder = load_text_encoder(resolve_student("landscapes-128"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short, mask = encoder.tokenize(["a lake", "a red house by a lake at dusk"])
    assert mask.sum(1).tolist()[0] < mask.sum(1).tolist()[1] == short.shape[1]
    with pytest.warns(UserNotice, match="tokens with its template, of which 512 are read"):
        long, _ = encoder.tokenize(["a lake under hills " * 300])
    assert long.shape[1] == MAX_TOKENS
    end = encoder.tokenize([""])[0][0]
    assert long[0, -1] == end[-1] and long[0, 0] == end[0]
