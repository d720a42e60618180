"""A tiny student on the disk, and the `l2p` command in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def student_folder(tiny_pipeline, tmp_path_factory) -> Path:
    """Folder of an untrained student with the linear head, as the first stage of a run writes it."""
    import torch

    from l2p.lift import Lift
    from l2p.recipe import HeadConfig, StudentConfig
    from l2p.students.build import from_teacher
    from l2p.students.io import save_student
    from l2p.teachers import load_teacher

    teacher = load_teacher(tiny_pipeline)
    basis = torch.linalg.qr(
        torch.randn(768, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0]
    lift = Lift(basis, 1.0, torch.zeros(768, dtype=torch.float64), 0.8, 0.9, 0.9)
    student = from_teacher(teacher, lift, StudentConfig(head=HeadConfig("linear")), (32, 48))
    folder = tmp_path_factory.mktemp("run") / "student"
    recipe = {"name": "tiny", "seed": 3, "teacher": {"path": tiny_pipeline}}
    save_student(
        student, folder, text_encoder=teacher.text_encoder, extra={"recipe": recipe, "stage": "one_step"}
    )
    return folder


@pytest.fixture
def l2p_process():
    """The same as a new process: what a user's shell sees."""

    def run(*argv: object, **environment: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "l2p.cli.main", *map(str, argv)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )
        return done.returncode, done.stdout, done.stderr

    return run
