"""Whole and in tiles, clean and noisy, early and to the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from l2p.decoders.build import from_teacher
from l2p.decoders.decode import PidDecoder, VaeDecoder
from l2p.decoders.early_stop import sample
from l2p.decoders.sources import Source
from l2p.errors import UserError
from l2p.evaluation.seams import seam_index
from l2p.images import from_uint8
from l2p.recipe import HeadConfig

HEAD = HeadConfig(fine_patch=4, width=16, num_blocks=1, head_dim=16, tile=4, halo=2)


@pytest.fixture
def source():
    generator = torch.Generator().manual_seed(5)
    smooth = torch.nn.functional.interpolate(
        torch.randn(1, 16, 4, 4, generator=generator), (16, 20), mode="bicubic", align_corners=True
    )
    return Source(smooth, 0.0, 125, 159)


def test_tiles_repeat_the_whole_without_seams(teacher, source, monkeypatch):
    knobs = HeadConfig(fine_patch=8, width=16, num_blocks=0, head_dim=16, tile=4, halo=2)
    local = from_teacher(teacher, 4, HEAD, draft=knobs, adapter_width=8, features=8).eval()
    whole = PidDecoder(local, 1)(source)
    assert whole.shape == (500, 636, 3)
    seen = []
    tiled = PidDecoder(local, 1, progress=lambda done, count: seen.append((done, count)))
    monkeypatch.setattr(PidDecoder, "tile", lambda self, rows, columns: 6)
    picture = tiled(source)
    assert seen == [(n, 4) for n in range(1, 5)]
    assert np.abs(picture.astype(int) - whole).mean() < 4  # a tile's edge has no neighbours
    first, second = (seam_index(from_uint8(x[None]), 64) for x in (whole, picture))
    assert float(second / first) < 1.05


def test_bands_change_no_pixel(decoder, source):
    whole, bands = PidDecoder(decoder, 1), PidDecoder(decoder, 1)
    bands.band = lambda rows, columns: 32
    assert np.abs(whole(source).astype(int) - bands(source)).max() <= 1


def test_the_budget_sets_the_tile(decoder):
    decode = PidDecoder(decoder, 1)
    assert decode.tile(8, 8) is None
    decode.memory_budget = decode.bytes_for(7, 7)
    assert decode.tile(8, 8) == 7
    decode.memory_budget = 1000
    with pytest.raises(UserError, match="too small for a tile"):
        decode.tile(8, 8)


def test_a_seed_is_a_picture(decoder, source):
    decode = PidDecoder(decoder, 2)
    assert np.array_equal(decode(source, 1), decode(source, 1))
    assert not np.array_equal(decode(source, 1), decode(source, 2))


def test_noise_levels_beyond_are_refused(decoder, teacher, source):
    source.sigma = 0.9
    with pytest.raises(UserError, match="trained from 0 to 0.8"):
        PidDecoder(decoder)(source)
    with pytest.raises(UserError, match="take --decoder pid"):
        VaeDecoder(teacher, 4)(source)


def test_the_vae_is_the_teachers_decoder_enlarged(teacher, source):
    from PIL import Image

    with torch.no_grad():
        small = (
            ((teacher.decode(source.latents).clamp(-1, 1) + 1) * 127.5)
            .round()
            .byte()[0]
            .permute(1, 2, 0)
            .numpy()
        )
    wanted = Image.fromarray(small[:125, :159]).resize((318, 250), Image.Resampling.LANCZOS)
    assert np.array_equal(VaeDecoder(teacher, 2)(source), np.asarray(wanted))


def test_stopping_early_runs_fewer_steps_and_hands_over_the_noise(teacher, monkeypatch):
    calls = []
    velocity = type(teacher).velocity
    monkeypatch.setattr(
        type(teacher),
        "velocity",
        lambda self, *args, **more: calls.append(1) or velocity(self, *args, **more),
    )
    whole, facts = sample(teacher, "a house", 3, 32, 32, 8)
    assert (len(calls), whole.sigma, facts["steps_skipped"]) == (8, 0.0, 0)
    calls.clear()
    early, facts = sample(teacher, "a house", 3, 32, 32, 8, stop_at=0.5)
    times = teacher.times(8, 32, 32)
    assert early.sigma == pytest.approx(float(times[times <= 0.5][0]))
    assert len(calls) == 8 - facts["steps_skipped"] == int((times > 0.5).sum())
    assert facts["seconds_saved"] > 0
    with pytest.raises(UserError, match="multiples of 16"):
        sample(teacher, "a house", 3, 30, 32, 8)
