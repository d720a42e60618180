"""An evaluation that was killed goes on where it was, repeats the figures of one that was not, and forgets what passed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch

from l2p.evaluation.attributes import named_labels
from l2p.evaluation.collection import Gathered
from l2p.evaluation.judge import load_judge
from l2p.evaluation.sample_store import Shown
from l2p.images import from_uint8
from l2p.landscapes import Scene, caption, render_batch
from l2p.lift import Lift
from l2p.recipe import HeadConfig, StudentConfig
from l2p.students.build import from_teacher
from l2p.students.io import save_student
from l2p.teachers import load_teacher

TIMES = ("seconds", "latency_ms", "speedup", "peak_memory_mb")


@pytest.fixture(scope="module")
def student(tiny_pipeline, tmp_path_factory):
    teacher = load_teacher(tiny_pipeline)
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(768, 64, generator=generator, dtype=torch.float64)).Q
    lift = Lift(basis, 0.5, torch.zeros(768, dtype=torch.float64), 0.0, 0.0, 0.0)
    settings = {
        "path": tiny_pipeline,
        "num_inference_steps": 2,
        "guidance_scale": 0.0,
        "height": 32,
        "width": 32,
    }
    recipe = {
        "teacher": settings,
        "evaluation": {"num_images": 8, "batch_size": 1, "latency_runs": 1, "preview_images": 2},
    }
    torch.manual_seed(0)
    drawn = from_teacher(teacher, lift, StudentConfig(head=HeadConfig(width=32, num_blocks=1)), (32, 32))
    folder = tmp_path_factory.mktemp("resume") / "student"
    save_student(drawn, folder, teacher.text_encoder, {"recipe": recipe})
    return folder


def timeless(value):
    """Without the times, which differ from run to run."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return value


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_repeats_the_figures_of_a_straight_one(l2p, student, tmp_path):
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    command = ("evaluate", student, "--device", "cpu", "--dtype", "fp32", "--out")
    process = subprocess.Popen(
        [sys.executable, "-m", "l2p.cli.main", *map(str, command), str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    limit = time.monotonic() + 300
    while len(list((killed / "evaluation" / "student").glob("[!.]*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in (killed / "evaluation").glob("*/[!.]*.npz")}
    assert not (killed / "metrics.json").exists() and len(before) < 3 * 8
    for out in (killed, straight):
        assert l2p(*command, out)[0] == 0
    metrics = [json.loads((out / "metrics.json").read_text()) for out in (killed, straight)]
    assert timeless(metrics[0]) == timeless(metrics[1])
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())  # none drawn again
    with np.load(killed / "evaluation/pictures.npz") as a, np.load(straight / "evaluation/pictures.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in b)


def test_memory_holds_features_and_the_pictures_shown_whatever_the_number():
    seeds = range(9_700_000, 9_700_004)
    pictures = render_batch(seeds, 64, 64)
    labels = named_labels([caption(Scene.from_seed(seed)) for seed in seeds])
    judge, shown = load_judge(), Shown(4)
    gathered = Gathered("student", judge, (16, 8), None, "teacher")
    batches = []

    def add() -> None:
        batch = {"student": pictures.copy(), "teacher": pictures.copy()}
        batches.extend(map(weakref.ref, batch.values()))
        shown.add(batch)
        gathered.update({name: from_uint8(images) for name, images in batch.items()}, labels, None, None)

    add()
    before = len(pickle.dumps(gathered))  # a tensor is pickled with all of the memory that it holds on to
    for _ in range(8):
        add()
    features = gathered.figures.vectors[0][0].nbytes
    assert len(pickle.dumps(gathered)) - before < 32 * (
        features + 2000
    )  # a picture has 12 kB, in floats 49 kB
    assert len(batches) == 18 and not any(batch() is not None for batch in batches)
