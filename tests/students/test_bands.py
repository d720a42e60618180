"""Bands: whatever rows are painted alone, they are those of the whole picture, and so are the gradients."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2p import flow
from l2p.errors import UserError
from l2p.images import to_uint8
from l2p.patches import patchify
from l2p.students import tiled_inference
from l2p.students.build import from_teacher
from l2p.students.heads import PatchHead
from l2p.students.heads import patch as patch_head
from l2p.students.tiled_inference import fit_band, generate_tiled

TOLERANCE = 1e-6  # relative RMS in fp32


def new_head(patch: int, fine: int, tile: int, halo: int, blocks: int) -> PatchHead:
    torch.manual_seed(1)
    head = PatchHead(8, 8, patch, 4, fine, 16, num_blocks=blocks, head_dim=16, tile=tile, halo=halo)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(head.basis)
    return head.eval()


def inputs(head: PatchHead, height: int, width: int, batch: int = 2):
    p = head.patch_size
    features = torch.randn(batch, height, width, 8)
    return features, torch.randn(batch, 8), torch.randn(batch, 3, height * p, width * p), torch.rand(batch)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_bands_equal_the_whole(data):
    """Odd grids, tiles that do not divide them, halos beyond a tile, bands that end anywhere."""
    draw = data.draw
    patch, fine = draw(st.sampled_from([(8, 8), (8, 4), (6, 2), (4, 1)]))
    head = new_head(patch, fine, draw(st.integers(1, 4)), draw(st.integers(0, 5)), draw(st.integers(0, 2)))
    args = inputs(head, draw(st.integers(1, 7)), draw(st.integers(1, 3)))
    with torch.no_grad():
        whole = head(*args)
        head.band_height = draw(st.integers(1, 9)) * fine
        assert distance(head(*args), whole) < TOLERANCE
        start = draw(st.integers(0, whole.shape[2] - 1))  # and rows that are no fine tokens at all
        stop = draw(st.integers(start + 1, whole.shape[2]))
        features, c, x_in, t = args
        context = head.context(features, c, head.pool(patchify(x_in, patch)), t)
        rows = head.rows(features, c, context, lambda a, b: x_in[:, :, a:b], t, start, stop)
        assert distance(rows, whole[:, :, start:stop]) < TOLERANCE
        with mock.patch.object(patch_head, "STRIPE", draw(st.integers(1, 600))):
            assert distance(head(*args), whole) < TOLERANCE


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bands_have_the_gradients_of_the_whole(checkpointing):
    head = new_head(8, 4, 3, 2, 2)
    args = inputs(head, 5, 2)
    args[0].requires_grad_(), args[1].requires_grad_()

    def gradients():
        wanted = [args[0], args[1], *head.parameters()]
        return torch.autograd.grad(head(*args).square().sum(), wanted)

    whole = gradients()
    head.band_height, head.gradient_checkpointing = 12, checkpointing
    for found, expected in zip(gradients(), whole, strict=True):
        assert distance(found, expected) < 1e-5


def test_checkpointed_bands_keep_the_inputs_alone():
    """What the backward pass finds kept grows with the features, not with the pixels of a band."""
    head = new_head(8, 1, 4, 2, 2)
    args = inputs(head, 8, 2)
    kept = {}
    for band, checkpointing in ((None, False), (8, True)):
        sizes = {}
        head.band_height, head.gradient_checkpointing = band, checkpointing
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.setdefault(x.untyped_storage().data_ptr(), x) is None or x,
            lambda x: x,
        ):
            out = head(*args)
        own = {p.untyped_storage().data_ptr() for p in head.parameters()}
        kept[checkpointing] = sum(x.untyped_storage().nbytes() for key, x in sizes.items() if key not in own)
        out.sum().backward()
    assert kept[True] < kept[False] / 10


@pytest.mark.parametrize("in_span", [False, True])
@pytest.mark.parametrize("size", [(40, 24), (64, 48), (8, 8), (120, 16)])
def test_painting_is_one_step_of_the_student(
    teacher, lift, student_config, randomised, captions, in_span, size
):
    config = student_config("patch")
    config.project_noise = in_span
    student = randomised(from_teacher(teacher, lift, config, size=(32, 48)), std=0.02).eval()
    whole = [side + -side % 16 for side in size]
    noise, conditioning = flow.Noise.of_seeds([3, 4], 3, *whole), captions([5, 9])
    expected = to_uint8(student.sample(noise.rows(0, whole[0]), conditioning)[:, :, : size[0], : size[1]])
    student.head.fit_band = lambda *_: student.head.unit  # the lowest bands
    painted = generate_tiled(student, noise, conditioning, *size)
    assert painted.shape == (2, *size, 3)
    assert abs(painted.astype(int) - expected).max() <= 1  # rounding at the edge of a level
    assert (painted != expected).mean() < 1e-3


def test_other_heads_paint_whole(teacher, lift, student_config, captions):
    student = from_teacher(teacher, lift, student_config("linear")).eval()
    noise, conditioning = flow.Noise.of_seeds([3], 3, 32, 32), captions([5])
    expected = to_uint8(student.sample(noise.rows(0, 32), conditioning)[:, :, :24])
    assert (generate_tiled(student, noise, conditioning, 24, 32) == expected).mean() > 0.999


def test_a_student_told_of_its_step_paints_the_whole_step(
    teacher, lift, student_config, captions, randomised
):
    student = from_teacher(teacher, lift, student_config("patch", interval=True)).eval()
    randomised(student, std=0.05)
    noise, conditioning = flow.Noise.of_seeds([3], 3, 32, 32), captions([5])
    expected = student.sample(noise.rows(0, 32), conditioning)
    painted = generate_tiled(student, noise, conditioning, 32, 32)
    assert abs(painted.astype(int) - to_uint8(expected)).max() <= 1
    standing = student(noise.rows(0, 32), torch.ones(1), conditioning)  # a step from t to t
    assert (standing - expected).abs().max() > 0.02


def test_bands_grow_with_the_budget_and_too_little_is_one_line(teacher, lift, student_config):
    student = from_teacher(teacher, lift, student_config("patch"))
    head, bands = student.head, []
    for budget in (3 * 10**8, 4 * 10**8, 10**10):
        band = fit_band(student, (1, 3, 2048, 2048), budget)
        assert head.band_bytes(band, 1, 2048, 4) < budget
        assert 0 < new_head(16, 4, 1, 0, 0).band_bytes(band, 1, 2048, 4) < budget
        bands.append(band)
    assert bands[0] < bands[1] <= bands[2]
    # With all the memory of the world, bands are still no higher than halos make it worth.
    assert bands[2] // head.fine_patch * (2048 // head.fine_patch) <= patch_head.LARGEST_BAND
    with pytest.raises(UserError, match=r"memory budget of 0\.05 GB is too small .*: give 0\.\d+ GB or more"):
        fit_band(student, (1, 3, 2048, 2048), 5 * 10**7)


def test_no_room_for_the_pixels_is_one_line(teacher, lift, student_config, captions, monkeypatch):
    """The file of a large picture is refused before anything is painted, by a limit that the system itself keeps."""
    resource = pytest.importorskip("resource")
    student = from_teacher(teacher, lift, student_config("patch")).eval()
    noise = flow.Noise.of_seeds([3], 3, 64, 64)
    monkeypatch.setattr(tiled_inference, "LARGE", 1000)
    whole = generate_tiled(student, noise, captions([5]), 64, 64)
    assert isinstance(whole, np.memmap) and whole.shape == (1, 64, 64, 3)
    monkeypatch.setattr(student.core, "run", None)  # whose call would be another error
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 64 * 64 - 1, hard))
    try:
        with pytest.raises(UserError, match=r"no room for 0\.00 GB of pixels in .* set TMPDIR"):
            generate_tiled(student, noise, captions([5]), 64, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


PEAK = r"""
import re, torch
from pathlib import Path
from l2p import flow
from l2p.students import tiled_inference, presets
from l2p.students.heads import patch
from l2p.teachers.protocol import Conditioning

def peak(side, *budget):
    noise = flow.Noise.of_seeds([0], 3, *side)
    tiled_inference.generate_tiled(student, noise, words, *side, *budget)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin at the parent's own
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])

torch.set_num_threads(1)
patch.STRIPE, patch.LARGEST_BAND = 2**14, 2**20
student = presets.random_student("tiny", 2048, 2048)
words = Conditioning(torch.zeros(1, 4, student.spec.core["cap_feat_dim"]), torch.tensor([4]))
before = peak((64, 64))  # libraries make their buffers
print(*(peak((3072, 512), budget) - before for budget in (125_000_000, 10**10)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_budget_is_kept():
    """Peak of a process of its own, fp32: a picture inside a budget that one band of all of it breaks."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    in_bands, whole = map(int, done.stdout.split())
    allowed = 1.1 * 125e6 + 3 * 3072 * 512
    assert in_bands < allowed < whole, done.stdout
