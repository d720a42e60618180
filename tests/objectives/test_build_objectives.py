from __future__ import annotations

import pytest
import torch
from torch import nn

from l2p.errors import UserError
from l2p.objectives import OBJECTIVES, Objective, build_objectives, check_objectives, networks_seen


def test_objectives_are_built_by_name_and_those_of_weight_zero_are_not(teacher, lift):
    config = {
        "pairs": {"weight": 2, "latent": 1, "perceptual": 0},
        "flow": {"weight": 0.0},
        "drift": {"grids": [1, 2], "temperatures": [0.1]},
    }
    built = build_objectives(config, teacher=teacher, lift=lift)
    assert isinstance(built, nn.ModuleDict) and list(built) == ["pairs", "drift"]
    assert built["pairs"].weight == 2 and built["pairs"].latent == 1
    assert built["drift"].grids == (1, 2) and built["drift"].temperatures == (0.1,)
    assert not built.state_dict() and "latent=1" in repr(built)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pair": {}}, "unknown key objectives.pair: did you mean objectives.pairs"),
        (
            {"pairs": {"latnt": 1}},
            "unknown key objectives.pairs.latnt: did you mean objectives.pairs.latent",
        ),
        ({"pairs": {"weight": 0, "latnt": 1}}, "did you mean objectives.pairs.latent"),
        ({"pairs": {"teacher": 1}}, "unknown key objectives.pairs.teacher"),
        ({"pairs": {"latent": "much"}}, "objectives.pairs.latent is 'much', expected a finite number"),
        ({"pairs": {"latent": True}}, "finite number"),
        ({"pairs": {"latent": float("nan")}}, "finite number"),
        ({"pairs": {"latent": -1}}, "objectives.pairs.latent is -1, expected 0 to 1000000"),
        ({"pairs": {"edge": 0}}, "objectives.pairs.edge is 0, expected above 0 and at most 1"),
        ({"adversarial": {"padding": 1.5}}, "a whole number"),
        ({"pairs": {"latent_space": "pixels"}}, "expected lift or encoder"),
        ({"pairs": {"weight": -1}}, "objectives.pairs.weight is -1"),
        ({"drift": {"grids": 3}}, "a list"),
        ({"drift": {"grids": [1, "a"]}}, r"objectives.drift.grids\[1\] is 'a', expected a whole number"),
        ({"drift": {"temperatures": []}}, "expected at least one item"),
        (
            {"drift": {"temperatures": [0.1, 0]}},
            r"temperatures\[1\] is 0, expected above 0 and at most 1000000",
        ),
        ({"color": {"cells": [0]}}, r"cells\[0\] is 0, expected 1 to 1000"),
        ({"spectrum": {"window": 5}}, "expected a multiple of 2"),
        ({"flow": 1}, "objectives.flow is 1, expected a section with the keys weight, shift"),
        ({"flow": [{"weight": 1}]}, "expected a section"),
        ([{"flow": {"weight": 1}}], "expected a section"),
        ({}, "nothing to train"),
        ({"flow": {"weight": 0}}, "nothing to train"),
    ],
)
def test_mistakes_are_one_clear_line(config, message):
    with pytest.raises(UserError, match=message) as error:
        check_objectives(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adversarial", {"r1": -1.0}),
        ("adversarial", {"r1_noise": 0.0}),
        ("adversarial", {"width": 0}),
        ("adversarial", {"critic_updates": 0}),
        ("adversarial", {"features": ""}),
        ("pairs", {"perceptual_network": {}}),
        ("pairs", {"perceptual_network": {"encoder": -1.0}}),
        ("distribution", {"t_min": 0.0}),
        ("distribution", {"t_min": 0.99}),
        ("distribution", {"shift": 0.0}),
        ("distribution", {"pixel_clip": -1.0}),
        ("distribution", {"guidance_scale": -1.0}),
        ("drift", {"grids": [0]}),
        ("drift", {"feature_scale": 0.0}),
        ("drift", {"teacher_time": 0.0}),
        ("flow", {"shift": 0.0}),
        ("flow", {"std": -1.0}),
        ("flow", {"t_min": 0.0}),
        ("mean_flow", {"equal": 1.5}),
        ("mean_flow", {"power": -1.0}),
        ("mean_flow", {"perceptual_below": 0.0}),
        ("pairs", {"pixel": -1.0}),
        ("pairs", {"squared": -0.1}),
        ("pairs", {"perceptual_fraction": 0.0}),
        ("pairs", {"feature_scale": 0.7}),
        ("pairs", {"weight": float("inf")}),
        ("pairs", {"weight": 10**400}),
        ("spectrum", {"window": 2}),
        ("color", {"cells": []}),
    ],
)
def test_an_impossible_option_is_refused_by_name(name, options):
    with pytest.raises(UserError, match=f"objectives.{name}.{next(iter(options))}"):
        check_objectives({name: options})


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


def test_the_networks_that_losses_saw_are_read_off_a_recipe_even_of_an_older_version():
    pairs = {"perceptual_network": {"lpips": 0.4, "pmf": 0.1, "encoder": 0}}
    recipe = {
        "one_step": {"objectives": {"pairs": pairs, "drift": {"weight": 0}}},
        "match": {"objectives": {"drift": {"features": "teacher", "teacher_blocks": [2]}, "pairs": 3}},
        "transfer": {"enabled": False, "objectives": {"drift": {}}},
    }
    assert networks_seen(recipe) == {
        "lpips": "bsd-2-clause (LPIPS), bsd-3-clause (VGG-16)",
        "timm:convnextv2_base.fcmae_ft_in22k_in1k": "cc-by-nc-4.0",
        "drift: teacher": "not recorded",
    }
