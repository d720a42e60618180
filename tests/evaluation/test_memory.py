"""Peak memory of one picture, measured in a process of its own."""

from __future__ import annotations

import sys

import pytest
import torch

from l2p.evaluation.memory import peak_memory, process_status
from l2p.recipe import TeacherConfig
from l2p.runtime import return_free_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_resident_memory_is_what_was_touched():
    return_free_memory()  # of tests before, which a new block might get
    before = process_status("VmRSS")
    held = torch.ones(64 << 20, dtype=torch.uint8)
    assert abs(process_status("VmRSS") - before - held.numel()) < 4 << 20
    assert process_status("VmHWM") >= before + held.numel() - (4 << 20)


@pytest.mark.slow
@linux
def test_a_teacher_needs_its_weights_and_not_the_libraries(tiny_pipeline):
    """The tiny networks take some ten MB, torch and diffusers several hundred; a broken folder has no figure."""
    cpu, teacher = torch.device("cpu"), TeacherConfig(path=tiny_pipeline, guidance_scale=1.0)
    assert 2 < peak_memory((64, 64), cpu, torch.float32, teacher=teacher) < 250
    assert peak_memory((64, 64), torch.device("mps"), torch.float32, teacher=teacher) is None
