"""The card: metadata that the Hub's own library reads back, and no figure that is not in the folder."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from l2p.hub.stage import stage
from l2p.students.io import load_student, save_student


def card_of(folder) -> ModelCard:
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


@pytest.fixture(scope="module")
def staged(run_folder, tmp_path_factory):
    return stage(run_folder / "student", tmp_path_factory.mktemp("staged") / "student", name="ann/tiny")


def test_the_metadata_are_valid_and_true(staged):
    data = card_of(staged).data
    assert data.library_name == "latent2pixel" and data.pipeline_tag == "text-to-image"
    assert data.license == "apache-2.0" and data.model_name == "tiny"
    assert data.base_model is None and data.datasets is None  # neither is on the Hub
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {
        "attribute_accuracy": 93.4,
        "frechet": 14.06,
        "psnr_to_teacher": 25.7,
        "seam_ratio": 5.3,
    }
    assert {result.dataset_name for result in data.eval_results} == {"unseen prompts of landscapes"}


def test_the_text_tells_the_facts_of_the_folder(staged):
    text = card_of(staged).text
    for fact in (
        "48 x 32 px in one step",
        "![Teacher above, student below, from the same noise](pictures.png)",
        'l2p.load("ann/tiny")',
        "one picture of 48 x 32 px on cpu (x86_64), 2 threads, bfloat16",
        "| **this student, 1 step** | 36.2 | 98.7 |",
        "| teacher, 20 steps and VAE | 539.0 | - |",
        "| teacher, 20 steps and VAE | 95.0 % | 7.00 |",
        "PSNR to the teacher's picture of the same noise",
        "16 unseen prompts of landscapes",
        "Licence: apache-2.0",
        "`recipe.yaml` (tiny, seed 3)",
        "## Limitations",
    ):
        assert fact in text, fact
    size = sum(t.numel() * t.element_size() for t in load_student(staged).state_dict().values())
    assert f"{size / 1e6:,.1f} MB (F32)" in text


def test_the_lines_that_load_it_run(staged, run_folder):
    code = re.search(r"```python\n(.*?)```", card_of(staged).text, re.DOTALL)[1]
    assert code.count("\n") == 3
    compile(code, "card", "exec")


def test_no_path_of_this_machine_is_told(staged, run_folder):
    for file in staged.rglob("*"):
        if file.suffix in (".json", ".yaml", ".md"):
            assert str(run_folder.parent) not in file.read_text()
    assert str(run_folder.parent).encode() not in (staged / "model.safetensors").read_bytes()
    assert (staged / "pictures.png").is_file()


def bare(run_folder, tmp_path, metrics=None, **teacher):
    student = load_student(run_folder / "student")
    student.spec.teacher.update(teacher)
    extra = {"recipe": {"corpus": {"prompts": "ann/prompts"}}} if teacher else None
    save_student(student, tmp_path / "run" / "student", extra=extra)
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(run_folder / "student" / part, tmp_path / "run" / "student" / part)
    if metrics is not None:
        (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    return stage(tmp_path / "run" / "student", tmp_path / "out")


def test_what_was_not_measured_is_not_told(run_folder, tmp_path):
    card = card_of(bare(run_folder, tmp_path))
    assert (
        "Not measured." in card.text
        and "Its speed was not measured." in card.text
        and "Not recorded." in card.text
    )
    assert "pictures.png" not in card.text and card.data.eval_results is None


def test_teacher_licence_and_data_on_the_hub_are_named(run_folder, tmp_path):
    out = bare(run_folder, tmp_path, name="ann/teacher", revision="a" * 40, license="some-own-licence 2.0")
    data = card_of(out).data
    assert data.base_model == "ann/teacher" and data.base_model_relation == "finetune"
    assert data.license == "other" and data.license_name == "some-own-licence-2.0"
    assert data.datasets == ["ann/prompts"]
    assert "Licence: some-own-licence 2.0. The student's weights began as the teacher's" in card_of(out).text


def test_an_unknown_licence_is_said_loudly(run_folder, tmp_path):
    out = bare(run_folder, tmp_path, license="unknown")
    assert "**It is not recorded: find it before you use or share this model**" in card_of(out).text


def test_odd_figures_do_not_break_it(run_folder, tmp_path):
    odd = {
        "student": {"frechet": None, "psnr_to_teacher": True, "seam_ratio": "many"},
        "teacher": [],
        "settings": {},
    }
    card = card_of(bare(run_folder, tmp_path, odd))
    assert card.data.eval_results is None and "True" not in card.text


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (0, "16 unseen prompts of landscapes,"),
        (None, "16 prompts of landscapes,"),
        (5, "16 prompts of landscapes, 5 of them in the training corpus,"),
    ],
)
def test_unseen_is_said_of_what_was_counted(seen, words):
    from l2p.hub.card import _table

    settings = {"num_images": 16, "prompts": "landscapes", "dtype": "bf16", "seen_prompts": seen}
    metrics = {"settings": settings, "student": {"frechet": 1.0}}
    assert words in _table(metrics, settings, {"frechet": ("Frechet", 1, 2, "")})
