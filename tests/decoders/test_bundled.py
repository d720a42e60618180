"""The decoder that comes with the package: small enough, with its recipe, and better than what it stands beside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from l2p.decoders.io import BUNDLED, bundled_decoders, load_decoder
from l2p.evaluation.decoders import evaluate_decoder
from l2p.files import read_json
from l2p.recipe import load_recipe
from l2p.teachers import load_teacher
from l2p.training.pid import PidRecipe

NAME = "landscapes-4x"


def test_it_comes_with_what_made_it():
    assert NAME in bundled_decoders()
    folder = BUNDLED / NAME
    assert (folder / "model.safetensors").stat().st_size < 25e6
    config = read_json(folder / "config.json")
    assert config["stage"] == "polish" and config["recipe"]["seed"] == 0
    shipped = load_recipe(Path(__file__).parents[2] / "recipes" / "pid-landscapes.yaml", schema=PidRecipe)
    made = config["recipe"]
    for stage in ("flow", "few_step", "one_step", "polish"):
        assert made[stage]["objectives"] == getattr(shipped, stage).objectives
        assert made[stage]["steps"] == getattr(shipped, stage).steps
        assert (folder / f"{stage}-log.csv").is_file()


@pytest.mark.filterwarnings("ignore")
def test_two_unseen_scenes_against_vae_and_lanczos(tmp_path):
    decoder = load_decoder(NAME)
    metrics = evaluate_decoder(
        decoder,
        load_teacher("landscapes"),
        tmp_path,
        num_images=2,
        steps=(1,),
        progress=False,
        dtype=torch.float32,
    )
    vae, pid = metrics["paths"]["vae+lanczos"], metrics["paths"]["pid, 1 step"]
    assert pid["psnr_small"] > vae["psnr_small"] - 0.5
    assert pid["high_frequency_ratio"] > 10 * vae["high_frequency_ratio"]
    for distance in ("perceptual", "judge_distance"):
        assert pid[distance] < 0.95 * vae[distance]
    assert pid["color_drift"] < 2
    assert max(pid["seam_ratio"], pid["seam_ratio_4"]) < 1.1
