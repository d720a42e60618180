"""The decoder's figures on pictures whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from l2p.decoders.decode import lanczos
from l2p.evaluation.decoders import DecoderFigures, judge_distance, verdict
from l2p.evaluation.judge import Judge
from l2p.images import from_uint8
from l2p.landscapes import render_batch


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    return Judge().eval()


def test_the_truth_is_perfect_and_a_blurred_picture_is_not(judge):
    def mean_square(x, y):
        return (x - y).square().flatten(1).mean(1)

    truth = render_batch(range(2), 256, 256)
    blurred = np.stack([lanczos(lanczos(x, 64, 64), 256, 256) for x in truth])
    perfect, soft = (DecoderFigures(judge, mean_square, 4, (64, 4)) for _ in range(2))
    for x, y in zip(blurred, truth, strict=True):
        perfect.update(y, y, 1.0)
        soft.update(x, y, 2.0)
    best, worse = perfect.report(), soft.report()
    assert best["perceptual"] == best["judge_distance"] == best["color_drift"] == 0
    assert best["high_frequency_ratio"] == best["seam_ratio"] == 1 and best["patch_frechet"] < 1e-3
    assert worse["high_frequency_ratio"] < 0.3 and worse["judge_distance"] > 0.001
    assert worse["psnr_small"] > worse["psnr"] + 5 and worse["seconds"] == 2
    lines = verdict({"vae+lanczos": best, "pid, 1 step": worse})
    assert any("high_frequency_ratio" in line for line in lines) and any(
        "further from the truth" in line for line in lines
    )
    assert not verdict({"vae+lanczos": worse, "pid, 1 step": best})


def test_the_judges_maps_tell_pictures_apart(judge):
    x = from_uint8(render_batch(range(2), 128, 128))
    same, other = judge_distance(judge, x, x), judge_distance(judge, x, x.flip(0))
    assert not same.any() and (other > 0.01).all()
