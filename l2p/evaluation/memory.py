"""Peak memory of one picture, prompt to 8-bit, of a student or its teacher: measured in a process that does nothing else.

In the evaluation's own process every network lies beside every other, and an allocator that keeps what it was given hides
what a picture needs. On a CPU the figure is what the process gained in resident memory (Linux with glibc alone tells)
after a small picture made it load its libraries; on a GPU it is the most that torch had allocated. Weights and text encoder are in it.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from l2p.errors import warn

if TYPE_CHECKING:
    from l2p.recipe import TeacherConfig

STATUS = Path("/proc/self/status")
PROMPT = "a red house by a lake at dusk"


def peak_memory(
    size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    student: str | Path | None = None,
    teacher: TeacherConfig | None = None,
) -> float | None:
    """Megabytes (10^6 bytes) that one picture of `student`, a folder, or else of `teacher` needs at its peak.

    The teacher draws with one step, as many steps need no more. None where it cannot be measured: no Linux and no GPU,
    or too little memory for another copy of the network.

    Args:
        size: height and width in pixels.
        dtype: of the arithmetic.
    """
    if device.type != "cuda" and not (device.type == "cpu" and STATUS.is_file()):
        return None
    job: dict[str, Any] = {"size": size, "device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    if student is not None:
        job["student"] = str(student)
    else:
        job |= {"path": teacher.path, "revision": teacher.revision, "guidance_scale": teacher.guidance_scale}
    job["threads"] = torch.get_num_threads()
    done = subprocess.run(
        [sys.executable, "-m", "l2p.evaluation.memory", json.dumps(job)], capture_output=True, text=True
    )
    last = done.stdout.splitlines()[-1:] if done.returncode == 0 else []
    if not last:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        warn(f"the peak memory of {student or teacher.path} was not measured: {reason[0]}")
        return None
    return round(float(last[0]), 1)


def _measure(job: dict[str, Any]) -> float:
    """In the new process: load, draw, and tell the megabytes."""
    import ctypes

    from l2p import runtime

    runtime.setup(job["threads"])
    draw = _draw_student if "student" in job else _draw_teacher
    if job["device"] != "cpu":
        draw(job, *job["size"])
        return torch.cuda.max_memory_allocated(job["device"]) / 1e6
    # A small picture first: what libraries load when they are first used is not the picture's.
    draw(job, 32, 32)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = process_status("VmRSS")
    draw(job, *job["size"])
    return (process_status("VmHWM") - before) / 1e6


def _draw_student(job: dict[str, Any], height: int, width: int) -> None:
    from l2p.runtime import DTYPES
    from l2p.students.pipeline import load

    dtype = next(name for name, kind in DTYPES.items() if kind == getattr(torch, job["dtype"]))
    load(job["student"], job["device"], dtype).generate(PROMPT, seeds=0, height=height, width=width)


@torch.no_grad()
def _draw_teacher(job: dict[str, Any], height: int, width: int) -> None:
    from l2p import flow, runtime
    from l2p.images import to_uint8
    from l2p.teachers import load_teacher

    device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
    weights = torch.float32 if device.type == "cpu" else dtype
    teacher = load_teacher(job["path"], job["revision"], device=device, dtype=weights)
    eps = flow.noise([0], *teacher.geometry.latent_shape(height, width)).to(device)
    with runtime.autocast(device, dtype):
        z = teacher.sample(eps, teacher.encode_prompts([PROMPT]), 1, job["guidance_scale"])
        to_uint8(teacher.decode(z).float())


def process_status(key: str) -> int:
    """Bytes of a line of /proc/self/status; `ru_maxrss` would count the process that started this one."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(_measure(json.loads(sys.argv[1])))
