"""The whole evaluation with a tiny random teacher: structure, identities, cache, determinism, mistakes."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from l2p.decoders.build import from_teacher as decoder_from_teacher
from l2p.decoders.io import save_decoder
from l2p.errors import UserError
from l2p.evaluation import evaluate as module
from l2p.evaluation.evaluate import EVALUATION_SEEDS, METHODS, evaluate
from l2p.evaluation.references import TeacherPictures
from l2p.evaluation.report import write_report
from l2p.evaluation.saved import evaluate_folder
from l2p.images import from_uint8, to_uint8
from l2p.lift import Lift
from l2p.noise import pixel_noise
from l2p.patches import patchify
from l2p.recipe import EvaluationConfig, HeadConfig, StudentConfig, TeacherConfig
from l2p.students.build import from_teacher
from l2p.students.io import save_student
from l2p.students.pipeline import StudentPipeline
from l2p.teachers import load_teacher

CONFIG = EvaluationConfig(
    num_images=5, batch_size=3, seed=0, preview_images=4, latency_runs=1, peak_memory=False
)


@pytest.fixture(scope="module")
def teacher(tiny_pipeline):
    return load_teacher(tiny_pipeline)


@pytest.fixture(scope="module")
def teacher_config(tiny_pipeline):
    return TeacherConfig(path=tiny_pipeline, num_inference_steps=3, guidance_scale=0.0, height=64, width=64)


@pytest.fixture(scope="module")
def students(teacher):
    basis = torch.linalg.qr(
        torch.randn(768, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ).Q
    lift = Lift(basis, 0.5, torch.zeros(768, dtype=torch.float64), 0.0, 0.0, 0.0)
    torch.manual_seed(0)
    kinds = {"linear": HeadConfig(kind="linear"), "patch": HeadConfig(width=32, num_blocks=1)}
    return {
        kind: from_teacher(teacher, lift, StudentConfig(head=head), (64, 64)) for kind, head in kinds.items()
    }


@pytest.fixture(scope="module")
def run(teacher, teacher_config, students, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pipeline = StudentPipeline(students["linear"], teacher.text_encoder)
    metrics = evaluate(
        pipeline, teacher, students["linear"], CONFIG, folder, teacher_config=teacher_config, progress=False
    )
    return folder, pipeline, metrics


def test_every_object_has_its_figures(run):
    folder, _, metrics = run
    assert metrics == json.loads((folder / "metrics.json").read_text())
    for name in METHODS:
        assert {
            "attribute_accuracy",
            "frechet",
            "latency_ms",
            "seam_index",
            "seam_ratio",
            "detail_ratio",
        } <= metrics[name].keys()
        assert metrics[name]["latency_ms"] > 0 and metrics[name]["frechet"] >= 0
        assert 0 <= metrics[name]["attribute_accuracy"] <= 1
        assert ("psnr_to_teacher" in metrics[name]) == (name != "teacher")
    assert metrics["real"]["seam_ratio"] == 1.0 and metrics["real"]["attribute_accuracy"] > 0.8
    assert metrics["vae"]["psnr_to_real"] > 0
    assert metrics["settings"]["num_images"] == 5


def test_equal_painters_get_equal_figures(run):
    _, _, metrics = run  # the student of this run is the lift itself
    for key in ("attribute_accuracy", "frechet", "frechet_to_teacher", "psnr_to_teacher", "seam_index"):
        assert metrics["student"][key] == pytest.approx(metrics["lift"][key], rel=1e-9)
    expected = metrics["student"]["frechet"] / metrics["teacher"]["frechet"]
    assert metrics["summary"]["frechet_over_teacher"] == pytest.approx(expected)


def test_pictures_are_those_of_the_same_noise(run, teacher, teacher_config):
    folder, pipeline, _ = run
    with np.load(folder / "evaluation" / "pictures.npz") as file:
        assert file["captions"].shape == (4,) and file["real"].shape == (4, 64, 64, 3)
        noise = pixel_noise("philox", [EVALUATION_SEEDS + 1], 64, 64, pipeline.student.basis)
        eps = teacher.unpack(patchify(noise, 16) @ pipeline.student.basis)
        z = teacher.sample(eps, teacher.encode_prompts([str(file["captions"][1])]), 3)
        many = from_uint8(to_uint8(teacher.decode(z)))
        assert (from_uint8(file["teacher"][1:2]) - many).abs().max() <= 2.1 / 127.5
        drawn = pipeline.generate(str(file["captions"][1]), seeds=EVALUATION_SEEDS + 1, height=64, width=64)
        assert np.abs(np.asarray(drawn[0], int) - file["student"][1].astype(int)).max() <= 2


def test_a_rerun_takes_the_teacher_from_the_disk_and_agrees(
    run, teacher, teacher_config, students, monkeypatch
):
    folder, _, before = run

    def refuse(*_):
        raise AssertionError("the teacher drew again")

    monkeypatch.setattr(module, "paths_latency", lambda *_: dict.fromkeys(METHODS, 1.0))
    monkeypatch.setattr(TeacherPictures, "sample", refuse)
    student = copy.deepcopy(students["patch"])  # which, untrained, draws what the lift draws
    torch.nn.init.constant_(student.head.conv_out.bias, 0.1)
    pipeline = StudentPipeline(student, teacher.text_encoder)
    arguments = (pipeline, teacher, students["linear"], CONFIG, folder)
    after = evaluate(*arguments, teacher_config=teacher_config, progress=False)
    for key in ("frechet", "attribute_accuracy", "seam_index"):
        assert after["teacher"][key] == before["teacher"][key] and after["lift"][key] == before["lift"][key]
    assert after["student"]["psnr_to_teacher"] != before["student"]["psnr_to_teacher"]


def test_the_cache_knows_settings_and_survives_damage(teacher, teacher_config, students, tmp_path):
    source = TeacherPictures(teacher, students["linear"].basis, teacher_config, torch.float32, tmp_path)
    many, one = source.get(["a lake"], [1])
    assert not np.array_equal(many, one)
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    again, _ = source.get(["a lake"], [1])
    assert np.array_equal(many, again)
    source.get(["a lake"], [2])
    source.get(["a house"], [1])
    assert len(list(tmp_path.glob("*.npz"))) == 3


def test_prompts_from_a_file_leave_out_what_needs_the_truth(teacher, teacher_config, students, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    pipeline = StudentPipeline(students["patch"], teacher.text_encoder)
    metrics = evaluate(
        pipeline, teacher, students["linear"], CONFIG, tmp_path / "out", teacher_config=teacher_config,
        prompts=str(tmp_path / "prompts.txt"), progress=False,
    )  # fmt: skip
    assert metrics["student"]["attribute_accuracy"] is None and metrics["student"]["frechet"] is None
    assert "real" not in metrics and metrics["teacher"]["seam_ratio"] == 1.0
    assert metrics["student"]["psnr_to_teacher"] > 0


def test_a_saved_student_is_evaluated_beside_its_teacher(run, teacher, students, tiny_pipeline, tmp_path):
    recipe = {
        "name": "tiny",
        "teacher": {
            "path": tiny_pipeline,
            "num_inference_steps": 2,
            "guidance_scale": 0.0,
            "height": 64,
            "width": 64,
        },
        "corpus": {"prompts": "landscapes"},
        "evaluation": {
            "num_images": 4,
            "batch_size": 4,
            "latency_runs": 1,
            "peak_memory": False,
            "preview_images": 2,
        },
    }
    save_student(students["patch"], tmp_path / "student", teacher.text_encoder, {"recipe": recipe})
    head = HeadConfig(fine_patch=4, width=16, num_blocks=1, head_dim=16, tile=4, halo=2)
    save_decoder(decoder_from_teacher(teacher, 2, head, adapter_width=8, features=8), tmp_path / "decoder")
    metrics = evaluate_folder(
        tmp_path / "student", num_images=3, progress=False, device="cpu", dtype="fp32",
        paths=("vae", "pid", "l2p"), decoder=tmp_path / "decoder",
    )  # fmt: skip
    assert metrics["settings"]["num_images"] == 3 and metrics["settings"]["teacher_steps"] == 2
    assert (
        metrics["pid"]["psnr_to_teacher"] > 40
    )  # untrained, it is the teacher's own decoder, up and down again
    assert (tmp_path / "evaluation-student" / "report.html").is_file()
    # the linear student of the same lift, built anew from what the saved one holds, is the lift of the first run
    assert np.isfinite(metrics["lift"]["psnr_to_teacher"])


def test_a_student_without_free_noise_says_so_instead_of_a_black_map(
    teacher, teacher_config, students, tmp_path
):
    confined = copy.deepcopy(students["patch"])
    confined.spec.project_noise = True
    pipeline = StudentPipeline(confined, teacher.text_encoder)
    metrics = evaluate(
        pipeline, teacher, students["linear"], CONFIG, tmp_path, teacher_config=teacher_config, progress=False
    )  # fmt: skip
    assert metrics["student"]["invention"] is None and metrics["settings"]["map"] == "departure"
    with np.load(tmp_path / "evaluation" / "pictures.npz") as file:
        gap = (file["student"].astype(float) - file["teacher"]) / 127.5
        expected = np.sqrt((gap**2).mean(-1))
        assert np.abs(file["invention"] - expected).max() < 2e-3  # kept in fp16
    assert metrics["student"]["departure"] == pytest.approx(expected.mean(), rel=1e-3)
    page = write_report(tmp_path).read_text()
    assert "This student has no invention map" in page and "Departure from the teacher <input" in page


def test_a_student_that_draws_nan_is_named(teacher, teacher_config, students, tmp_path):
    import copy

    broken = copy.deepcopy(students["patch"])
    broken.offset.fill_(float("nan"))
    pipeline = StudentPipeline(broken, teacher.text_encoder)
    broken.forward = lambda x, *_: x * float("nan")
    with pytest.raises(UserError, match="the student draws numbers that are not finite"):
        evaluate(
            pipeline,
            teacher,
            students["linear"],
            CONFIG,
            tmp_path,
            teacher_config=teacher_config,
            progress=False,
        )
    assert not (Path(tmp_path) / "metrics.json").exists()
