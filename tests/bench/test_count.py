"""Counts of the presets against sums by hand, and `l2p info PRESET`."""

from __future__ import annotations

import json

import pytest
import torch

from l2p.bench import count as counting
from l2p.bench.count import BytesMoved, count
from l2p.cli.info import PRESET_NAMES
from l2p.errors import UserError
from l2p.students.presets import PRESETS, patch_size_for, preset_spec, random_student


def test_counts_against_sums_by_hand():
    """Linear layers of the head at 1024 px: 2 operations a weight and token; attention within its windows."""
    row, spec = count("base", 1024), preset_spec("base", 1024, 1024)
    fine, width, core, f = 128**2, 128, 768, 8
    hidden = 352  # 8 / 3 of the width, up to a multiple of 16
    # A core token opens four fine tokens, and the readout paints four.
    linear = core * width + 6 * f**2 * width + width * 12 * f**2
    block = width * 3 * width + width**2 + width * 2 * hidden + hidden * width + 9 * hidden
    draft = (core * 64 + 9 * 64 * 768) / 4 + 3 * f**2 * 64
    by_hand = 2 * fine * (linear + 2 * block + draft) + 2 * 9 * (15 * 32 + 32 * 3) * 1024**2
    windows = 4 * fine * 256 * width * 2  # scores and sums of at most 16 x 16 keys
    assert spec.head["width"] == width
    assert by_hand < row["head_flops"] < 1.01 * (by_hand + windows)
    assert row["core_parameters"] == pytest.approx(130e6, rel=0.05)
    assert row["flops"] == row["core_flops"] + row["head_flops"]
    tokens, width = 4096 + 64, 768
    layers = 12 * (2 * tokens * (4 * width**2 + 3 * width * 2048) + 4 * tokens**2 * width)
    refiners = 2 * (2 * 4096 * (4 * width**2 + 3 * width * 2048) + 4 * 4096**2 * width)
    first = 2 * 4096 * 768 * width
    assert row["core_flops"] == pytest.approx(layers + refiners + first, rel=0.02)


def test_bytes_moved_of_one_product():
    a, b = torch.zeros(8, 4, device="meta"), torch.zeros(16, 4, device="meta")
    with BytesMoved() as moved:
        a @ b.T  # the transposed view moves nothing
    assert moved.total == 4 * (8 * 4 + 16 * 4 + 8 * 16)


def test_the_head_grows_with_the_pixels_and_the_core_does_not():
    small, large = count("tiny", 1024), count("tiny", 4096)
    assert (
        large["core_flops"] < 1.5 * small["core_flops"]
    )  # but for the first layer, which reads larger patches
    assert large["head_flops"] == pytest.approx(16 * small["head_flops"], rel=0.15)


def test_presets():
    assert tuple(PRESETS) == PRESET_NAMES
    assert [patch_size_for(side, side) for side in (256, 1024, 1032, 2048, 4096, 8192)] == [
        16,
        16,
        32,
        32,
        64,
        128,
    ]
    assert patch_size_for(512, 8192) == 32
    student = random_student("tiny", 64, 64, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() and p.any() for p in student.parameters())
    with pytest.raises(UserError, match="no preset 'huge', expected one of tiny, base, large, z-image"):
        preset_spec("huge", 64, 64)


def test_info_of_a_preset(l2p, monkeypatch):
    monkeypatch.setattr(counting, "SIDES", (1024,))
    code, out, _ = l2p("info", "z-image", "--json")
    facts = json.loads(out)
    assert code == 0 and [row["side"] for row in facts["pictures"]] == [1024]
    assert facts["pictures"][0]["core_parameters"] == pytest.approx(6.15e9, rel=0.01)
    code, out, _ = l2p("info", "tiny")
    assert code == 0 and "1024 px" in out
