"""A Hub on this machine, an account on it, an empty cache, and a student whose run left its figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hub.local_hub import WRITER, LocalHub


@pytest.fixture(scope="session")
def run_folder(tiny_pipeline, tmp_path_factory) -> Path:
    """Folder of a run: a tiny student with a patch head, its metrics and pictures; random weights."""
    from l2p.lift import Lift
    from l2p.recipe import HeadConfig, StudentConfig
    from l2p.students.build import from_teacher
    from l2p.students.io import save_student
    from l2p.teachers import load_teacher

    teacher = load_teacher(tiny_pipeline)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(768, 64, dtype=torch.float64, generator=generator))[0]
    lift = Lift(basis, 0.6, 0.1 * torch.randn(768, dtype=torch.float64, generator=generator), 0.8, 0.9, 0.9)
    head = HeadConfig("patch", fine_patch=4, width=32, num_blocks=2, head_dim=16, tile=8, halo=2)
    torch.manual_seed(0)
    student = from_teacher(teacher, lift, StudentConfig(head=head), (32, 48))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    student.spec.teacher["license"] = "apache-2.0"
    folder = tmp_path_factory.mktemp("published") / "run"
    recipe = {"name": "tiny", "seed": 3, "output_dir": str(folder), "teacher": {"path": tiny_pipeline}}
    save_student(
        student, folder / "student", teacher.text_encoder, extra={"recipe": recipe, "stage": "one_step"}
    )
    settings = {
        "num_images": 16,
        "prompts": "landscapes",
        "seen_prompts": 0,
        "device": "cpu (x86_64)",
        "threads": 2,
        "dtype": "bfloat16",
    }
    settings |= {"height": 32, "width": 48, "teacher_steps": 20, "student_steps": 1}
    figures = {"attribute_accuracy": 0.934, "frechet": 14.06, "psnr_to_teacher": 25.7, "seam_ratio": 5.3}
    metrics = {
        "settings": settings,
        "student": {**figures, "latency_ms": 36.2, "peak_memory_mb": 98.7, "frechet_to_teacher": None},
    }
    metrics["teacher"] = {"attribute_accuracy": 0.95, "frechet": 7.0, "latency_ms": 539.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "evaluation").mkdir()
    pictures = np.random.default_rng(0).integers(0, 255, (2, 3, 32, 48, 3), dtype=np.uint8)
    np.savez(
        folder / "evaluation" / "pictures.npz",
        captions=["a", "b", "c"],
        teacher=pictures[0],
        student=pictures[1],
    )
    return folder


@pytest.fixture
def student_folder(run_folder) -> Path:
    return run_folder / "student"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A fresh Hub, known to the real client as the only one; the cache is empty and waiting takes no time."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    server = LocalHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HF_HUB_DISABLE_XET", True
    )  # its storage service is no part of the Hub's API
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    server.waits = []
    monkeypatch.setattr(
        _http.time, "sleep", server.waits.append
    )  # the module is shared: all of the client waits here
    _http.close_session()
    yield server
    _http.close_session()
    server.close()
