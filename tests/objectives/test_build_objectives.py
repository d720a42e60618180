from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from l2p.errors import UserError
from l2p.objectives import OBJECTIVES, Objective, build_objectives, check_objectives


def test_objectives_are_built_by_name_and_those_of_weight_zero_are_not(teacher, lift):
    config = OmegaConf.create(
        {
            "pairs": {"weight": 2, "latent": 1, "perceptual": 0},
            "flow": {"weight": 0.0},
            "drift": {"grids": [1, 2], "temperatures": [0.1]},
        }
    )
    built = build_objectives(config, teacher=teacher, lift=lift)
    assert isinstance(built, nn.ModuleDict) and list(built) == ["pairs", "drift"]
    assert built["pairs"].weight == 2 and built["pairs"].latent == 1
    assert built["drift"].grids == (1, 2) and built["drift"].temperatures == (0.1,)
    assert not built.state_dict() and "latent=1" in repr(built)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pair": {}}, "no objective 'pair'; did you mean 'pairs'"),
        ({"pairs": {"latnt": 1}}, "objectives.pairs has no knob 'latnt'; did you mean 'latent'"),
        ({"pairs": {"weight": 0, "latnt": 1}}, "did you mean 'latent'"),
        ({"pairs": {"teacher": 1}}, "no knob 'teacher'"),
        ({"pairs": {"latent": "much"}}, "objectives.pairs.latent must be a finite number, got 'much'"),
        ({"pairs": {"latent": True}}, "finite number"),
        ({"pairs": {"latent": float("nan")}}, "finite number"),
        ({"pairs": {"feature_blocks": 1.5}}, "an integer"),
        ({"pairs": {"latent_space": "pixels"}}, "'lift' or 'encoder'"),
        ({"drift": {"grids": 3}}, "a list"),
        ({"drift": {"grids": [1, "a"]}}, "an integer"),
        ({"flow": 1}, "must hold knobs"),
        ({}, "nothing to train"),
        ({"flow": {"weight": 0}}, "nothing to train"),
    ],
)
def test_mistakes_are_one_clear_line(config, message):
    with pytest.raises(UserError, match=message) as error:
        check_objectives(config)
    assert "\n" not in str(error.value)


def test_a_new_objective_is_one_entry(teacher, lift, context, monkeypatch):
    class Brightness(Objective):
        def __init__(self, *, teacher, lift, weight: float = 1.0, level: float = 0.5) -> None:
            super().__init__(weight)
            self.level = level

        def forward(self, ctx):
            return {"level": (ctx.picture.mean() - self.level) ** 2}

    monkeypatch.setitem(OBJECTIVES, "brightness", Brightness)
    built = build_objectives({"brightness": {"level": 0.25}}, teacher=teacher, lift=lift)
    terms = built["brightness"](context(lambda x, t: torch.zeros_like(x)))
    assert terms["level"].item() == 0.0625


def test_a_batch_is_cut_and_moved_whole(context):
    batch = context(None).batch.to("cpu")[1:3]
    assert len(batch) == 2 and len(batch.latents) == len(batch.noise) == len(batch.conditioning) == 2
