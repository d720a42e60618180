"""The commands that faults are put into, on tiny random networks, and what each leaves, without what may differ."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load

TIMES = ("seconds", "latency_ms", "speedup", "peak_memory_mb", "checksum", "content", "output_dir")
LEFTOVER = re.compile(r"(^|/)\.(lock|.*\.(partial|old)(\..*)?)$")


@dataclass(frozen=True)
class Job:
    """A command that writes one folder.

    Attributes:
        argv: from the folder to write to the command's words.
        again: what the documentation adds to go on after an interruption.
        trains: whether it has steps that a signal may interrupt.
    """

    name: str
    argv: Callable[[Path], list[str]]
    again: tuple[str, ...] = ()
    trains: bool = False


def make_jobs(teacher: str, prompts: Path, student: Path, recipes: Path) -> dict[str, Job]:
    """All jobs; their recipes are written into the folder `recipes`."""
    recipes.mkdir(exist_ok=True)

    def recipe(name: str, text: str) -> str:
        path = recipes / f"{name}.yaml"
        path.write_text(f"name: {name}\ndtype: fp32\nthreads: 1\n{text}")
        return str(path)

    one = recipe(
        "distill",
        f"""device: cpu
teacher: {{path: {teacher}, num_inference_steps: 1, height: 64, width: 64}}
corpus: {{num_pairs: 4, num_inference_steps: 1, prompts: {prompts}, batch_size: 2, shard_size: 2}}
lift: {{num_images: 8, min_r2: -1}}
student: {{head: {{fine_patch: 8, width: 32, num_blocks: 1, head_dim: 16, tile: 4, halo: 2}}}}
transfer: {{enabled: false}}
one_step: {{steps: 4, batch_size: 2, warmup_steps: 1, checkpoint_every: 2, preview_every: 3, objectives: {{pairs: {{weight: 1.0}}}}}}
match: {{enabled: false, objectives: {{pairs: {{weight: 1.0}}}}}}
evaluation: {{num_images: 2, batch_size: 1, preview_images: 2, latency_runs: 1, peak_memory: false}}
""",
    )
    grow = recipe(
        "grow",
        f"""student: {student}
teacher: {teacher}
factor: 2
preview_images: 1
pictures: {{sizes: [[64, 64]]}}
head: {{width: 32, num_blocks: 1}}
optim: {{steps: 3, batch_size: 2, checkpoint_every: 1}}
""",
    )
    head = recipe(
        "head",
        f"""teacher: {teacher}
pictures: {{count: 4, height: 64, width: 64}}
readout_images: 4
head: {{fine_patch: 8, width: 32, num_blocks: 1, head_dim: 16, tile: 4, halo: 2}}
crop: 32
optim: {{steps: 4, batch_size: 2, learning_rate: 3e-3, warmup_steps: 1, checkpoint_every: 2}}
""",
    )
    draw = [str(student), "a red house", "two trees", "--seed", "5", "--device", "cpu", "--dtype", "fp32"]
    measure = [str(student), "--device", "cpu", "--dtype", "fp32"]
    jobs = [
        Job("distill", lambda out: ["distill", one, f"output_dir={out}"], trains=True),
        Job("grow", lambda out: ["grow", grow, f"output_dir={out}"], trains=True),
        Job(
            "train-head",
            lambda out: ["train-head", head, f"output_dir={out}"],
            again=("--resume",),
            trains=True,
        ),
        Job("generate", lambda out: ["generate", *draw, "--out", str(out)], again=("--overwrite",)),
        Job("evaluate", lambda out: ["evaluate", *measure, "--out", str(out)]),
        Job("export", lambda out: ["export", str(student), "--to", "diffusers", str(out)]),
    ]
    return {job.name: job for job in jobs}


def result(folder: Path) -> dict[str, Any]:
    """Path -> content of all that a command left: no times, no bytes that a compressor may choose."""
    return {
        path.relative_to(folder).as_posix(): content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    """Locks and halves of files."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name for name in names if LEFTOVER.search(name))


def content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json":
        return _timeless(json.loads(data))
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(data.decode()))
        return [{name: row[name] for name in row.keys() - {"seconds"}} for row in rows]
    if path.suffix == ".png":
        return hashlib.sha256(np.asarray(Image.open(io.BytesIO(data))).tobytes()).hexdigest()
    if path.suffix == ".npz":
        with np.load(io.BytesIO(data)) as arrays:
            return {name: arrays[name] for name in arrays}
    if path.suffix == ".npy":
        return np.load(io.BytesIO(data))
    if path.suffix == ".safetensors":
        return {name: value.float().numpy() for name, value in load(data).items()}
    if path.name == "metadata.jsonl":
        return {
            row["file_name"]: row for row in map(json.loads, data.decode().splitlines())
        }  # the last one counts
    if path.suffix in (".ckpt", ".html", ".yaml") or path.name.startswith("."):
        return "there"  # times within; what it holds shows in the student
    return hashlib.sha256(data).hexdigest()


def same(one: Any, two: Any) -> bool:
    """Equal, but for the last digits of floats: sums of a warm and of a fresh process may differ there."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        if one.shape != two.shape or one.dtype != two.dtype:
            return False
        if one.dtype == np.uint8:  # such floats rounded: a value on the edge may fall to the next level
            return bool(np.abs(one.astype(int) - two.astype(int)).max(initial=0) <= 1)
        if one.dtype.kind != "f":
            return bool(np.array_equal(one, two))
        digits = 2 * np.finfo(one.dtype).eps if one.dtype == np.float16 else 1e-4
        return bool(np.allclose(one, two, rtol=digits, atol=1e-5))
    numbers = [_number(value) for value in (one, two)]
    if None not in numbers:
        return math.isclose(*numbers, rel_tol=1e-3, abs_tol=1e-5)
    return type(one) is type(two) and one == two


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
