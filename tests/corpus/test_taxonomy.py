from __future__ import annotations

from collections import Counter

import pytest

from l2p.corpus.prompts import prompts_for
from l2p.corpus.taxonomy import BUILT_IN, load_taxonomy
from l2p.errors import UserError

SMALL = """
classes:
  one: {only: [a cat]}
  many: {birds: [an owl, a hen], fish: [a cod]}
categories: {light: [at dawn, at noon]}
templates: ["{subject} {light}", "{subject}"]
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "own.yaml"
        path.write_text(text)
        return path

    return write


def test_classes_are_equally_likely_whatever_they_list(write):
    prompts = prompts_for(write(SMALL), range(4000))
    counts = Counter(
        subject for p in prompts for subject in ("a cat", "an owl", "a hen", "a cod") if subject in p
    )
    for subject, share in {"a cat": 1 / 2, "an owl": 1 / 8, "a hen": 1 / 8, "a cod": 1 / 4}.items():
        assert abs(counts[subject] / 4000 - share) < 5 * (share / 4000) ** 0.5, subject
    assert set(prompts) == {f"{s}{light}" for s in counts for light in ("", " at dawn", " at noon")}


def test_a_seed_is_one_sentence_on_every_machine(write):
    """Order of sets and dictionaries must not matter: Python hashes strings anew in every process."""
    text = SMALL.replace("light:", "view: [near, far, above], light:").replace(
        '"{subject}"', '"{view} {subject} {light}"'
    )
    prompts = prompts_for(write(text), range(8), 3)
    assert prompts == [
        "a cat at dawn",
        "a cat at noon",
        "above a cat at noon",
        "a cat at noon",
        "above a cat at noon",
        "far a cat at noon",
        "near a cat at dawn",
        "far an owl at noon",
    ]
    assert prompts_for(write(text), [1], 3) == prompts_for(write(text), [4], 0)


def test_the_built_in_taxonomy_is_rich_and_its_sentences_are_whole():
    prompts = prompts_for("taxonomy", range(2000))
    assert len(set(prompts)) > 1800
    assert not any("{" in prompt or "  " in prompt for prompt in prompts)
    assert len(load_taxonomy(BUILT_IN).classes) >= 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: {a: {b: [c]}}\ntemplates: ['{subjekt}']", "unknown slot {subjekt}"),
        ("classes: {a: {b: [c]}}\ntemplates: [plain]", "has no {subject}"),
        ("classes: {a: {b: [c]}}\ntemplates: ['{subject']", "is broken"),
        (
            "classes: {a: {b: []}}\ntemplates: ['{subject}']",
            "classes.a.b is \\[\\], expected a list of texts",
        ),
        ("classes: {a: [c]}\ntemplates: ['{subject}']", "classes.a is \\['c'\\], expected names"),
        ("classes: {a: {b: [c]}}", "templates is None"),
        ("name: quickstart\ncorpus: {}", "is no taxonomy: expected the keys"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_broken_taxonomy_is_one_clear_line(write, text, message):
    with pytest.raises(UserError, match=message) as error:
        load_taxonomy(write(text))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no taxonomy at nowhere.yaml"):
        load_taxonomy("nowhere.yaml")
