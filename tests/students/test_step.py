"""The step itself: nothing in it waits for the device, compiled it paints the same, and weights are read once."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from l2p import flow
from l2p.students.build import from_teacher
from l2p.students.grow import grow
from l2p.students.io import load_student, save_student, saved_dtype
from l2p.students.presets import preset_spec, random_student
from l2p.students.student import PixelStudent
from l2p.teachers.protocol import Conditioning

SYNCHRONISING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
}


class Synchronisations(TorchDispatchMode):
    """Counts what makes a host wait for its device: single values read, shapes that depend on values, copies either way."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.found = device, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in args if isinstance(x, torch.Tensor) and x.device.type == self.device]
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        back = isinstance(out, torch.Tensor) and out.device.type == "cpu" and self.device != "cpu"
        # A single value of the host goes along with the launch; more of them are a copy.
        there = self.device != "cpu" and any(x.device.type == "cpu" and x.ndim for x in given)
        there &= isinstance(out, torch.Tensor) and out.device.type == self.device
        masked = func.name().startswith("aten::index") and any(
            i is not None and i.dtype == torch.bool
            for i in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if there or tensors and (func.name().split(".")[0] in SYNCHRONISING or back or masked):
            self.found.append(func.name())
        return out


def test_the_counter_finds_what_it_looks_for():
    x = torch.ones(3)
    with Synchronisations("cpu") as seen:
        x.sum().item(), x[x > 0], bool(x[0] > 0)
    assert len(seen.found) == 3
    with Synchronisations("meta") as seen:
        x.to("meta"), x.to("meta") + 1.0
    assert seen.found == ["aten::_to_copy"] * 2


@pytest.mark.parametrize("in_bands", [False, True])
@pytest.mark.parametrize("grown", [False, True])
def test_no_step_waits_for_its_device(grown, in_bands):
    """On the meta device, where a value that is asked for is an error and a copy back would be counted."""
    student = random_student("tiny", 64, 64)
    if grown:
        student = grow(student, 2, {"fine_patch": 8, "width": 32, "num_blocks": 1, "head_dim": 16})
    student = student.to("meta")
    side = 2 * student.spec.patch_size
    words = Conditioning(
        torch.zeros(2, 7, student.spec.core["cap_feat_dim"], device="meta"), torch.tensor([7, 5])
    )
    x, t = torch.zeros(2, 3, side, side, device="meta"), torch.ones(2, device="meta")
    student.head.band_height = student.head.fine_patch if in_bands else None
    with torch.no_grad():
        student(x, t, words)  # the first step fills tables that the device then has
        with Synchronisations("meta") as seen:
            out = student(x, t, words)
    assert out.shape == x.shape and seen.found == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs g++")
def test_compiled_blocks_paint_the_same(teacher, lift, student_config, captions):
    student = from_teacher(teacher, lift, student_config("patch"), size=(32, 48)).eval()
    noise, conditioning = flow.noise([1], 3, 32, 48), captions([5])
    expected = student.sample(noise, conditioning)
    student.compile_blocks()
    compiled = [module for module in student.modules() if module._compiled_call_impl is not None]
    assert len(compiled) == len(student.core.layers) + 2 + len(student.head.blocks)
    torch.testing.assert_close(student.sample(noise, conditioning), expected, rtol=1e-3, atol=1e-3)


def test_weights_are_cast_as_they_are_read(teacher, lift, student_config, tmp_path):
    student = from_teacher(teacher, lift, student_config("patch"))
    save_student(student, tmp_path / "student")
    loaded = load_student(tmp_path / "student", dtype=torch.bfloat16)
    assert saved_dtype(tmp_path / "student") == torch.float32
    for (name, value), (_, own) in zip(loaded.named_parameters(), student.named_parameters(), strict=True):
        assert value.dtype == torch.bfloat16 and torch.equal(value, own.to(torch.bfloat16)), name
    assert torch.equal(loaded.basis, student.basis) and loaded.basis.dtype == torch.float32
    save_student(student, tmp_path / "narrow", dtype="bf16")
    assert saved_dtype(tmp_path / "narrow") == torch.bfloat16


LOADING = """
import sys
from pathlib import Path
from l2p.evaluation.memory import process_status
from l2p.runtime import realign_tensors
from l2p.students.io import load_student

small, large, *dtype = sys.argv[1:]
load_student(small)  # which loads libraries
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = process_status("VmRSS")
realign_tensors(load_student(large))
print(process_status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_loaded_weights_are_in_memory_once(tmp_path):
    """Neither a mapped file nor another copy lies beside them, at any time."""
    for name, layers in (("small", 1), ("large", 48)):
        spec = preset_spec("tiny", 64, 64)
        spec.core["n_layers"] = layers
        save_student(student := PixelStudent(spec), tmp_path / name)
    weight_bytes = sum(x.numel() * x.element_size() for x in student.state_dict().values())
    command = [sys.executable, "-c", LOADING, tmp_path / "small", tmp_path / "large"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert weight_bytes > 10**8 and int(done.stdout) < 1.3 * weight_bytes
