"""Every option of every objective changes what is trained: one that changes nothing has no business in a recipe."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from l2p.errors import UserError
from l2p.objectives import OBJECTIVES, build_objectives
from l2p.objectives.spec import options_of

OF_THE_ENGINE = {"weight", "critic_learning_rate", "critic_updates"}  # multiplied, stepped: tests/training
BELOW = {"perceptual": 1.0, "perceptual_below": 1.0}
LATENTS = {"space": "latents"}
FLIPS: dict[str, dict[str, object]] = {  # another value; a pair also names the options that it needs
    "flow": {"shift": 1.0, "mean": 1.0, "std": 0.5, "weighting": "x_0", "t_min": 0.9, "noise": "coupled"},
    "latents": {},
    "pairs": {
        "noise": "fresh",
        "target": "decoder",
        "pixel": 2.0,
        "squared": 1.0,
        "gradient": 2.0,
        "seam": 1.0,
        "edge": 0.5,
        "latent": 1.0,
        "latent_space": "encoder",
        "perceptual": 1.0,
        "perceptual_network": "transformer",
        "perceptual_fraction": 0.5,
        "feature_scale": 0.5,
    },
    "drift": {
        "temperatures": [0.5],
        "grids": [1],
        "features": "transformer",
        "feature_scale": 0.5,
        "teacher_time": (0.6, {"features": "transformer"}),
        "space": ("latents", {"features": "transformer"}),
    },
    "adversarial": {
        "loss": "hinge",
        "reals": "renders",
        "space": "latents",
        "features": "transformer",
        "feature_scale": 0.5,
        "teacher_time": (0.2, LATENTS),
        "width": 32,
        "r1": 0.0,
        "r1_noise": 0.5,
        "padding": 4,
    },
    "distribution": {
        "score": "not/there",
        "guidance_scale": 2.0,
        "decoupled": (True, {"guidance_scale": 2.0}),
        "t_min": 0.9,
        "shift": 5.0,
        "pixel_clip": 0.01,
        "space": "latents",
    },
    "mean_flow": {
        "mean": 1.0,
        "std": 0.2,
        "shift": 1.0,
        "equal": 0.0,
        "t_min": 0.9,
        "power": 0.0,
        "noise": "fresh",
        "perceptual": (1.0, {"perceptual_below": 1.0}),
        "perceptual_network": ("transformer", {**BELOW, "feature_scale": 1.0}),
        "perceptual_below": (0.01, BELOW),
        "feature_scale": (1.0, BELOW),
    },
    "alignment": {"features": "transformer", "width": 64},
    "color": {"cells": [2], "squared": 1.0},
    "energy": {},
    "spectrum": {"window": 8},
}


def test_every_option_is_flipped():
    assert FLIPS.keys() == OBJECTIVES.keys()
    for name, flips in FLIPS.items():
        assert flips.keys() == options_of(OBJECTIVES[name]).keys() - OF_THE_ENGINE, name


def trained(name: str, options: dict, real, step) -> list[float]:
    """Terms and size of the gradients of one step, of the critic and of the student."""
    teacher, lift = real
    ctx = step()
    torch.manual_seed(3)
    objective = build_objectives({name: options}, teacher=teacher, lift=lift)[name]
    for parameter in objective.parameters():  # a fresh critic answers zero to all
        nn.init.normal_(parameter, std=0.05)
    terms = {f"critic {k}": v for k, v in getattr(objective, "critic_loss", lambda _: {})(ctx).items()}
    terms |= objective(ctx)
    sum(terms.values()).backward()
    learning = [*ctx.student.parameters(), *objective.parameters()]
    sizes = [float(p.grad.double().norm()) for p in learning if p.grad is not None]
    return [*(float(v.detach()) for v in terms.values()), *sizes]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_option_changes_what_is_trained(name, real, step):
    first = {"features": "encoder"} if name == "alignment" else {}
    known: dict[str, list[float]] = {}
    for option, flip in FLIPS[name].items():
        value, needs = flip if isinstance(flip, tuple) and isinstance(flip[-1], dict) else (flip, {})
        needs = {**first, **needs}
        if repr(needs) not in known:
            known[repr(needs)] = trained(name, needs, real, step)
            assert trained(name, needs, real, step) == known[repr(needs)]  # else all would differ
        try:
            found = trained(name, {**needs, option: value}, real, step)
        except UserError:  # refused, and not passed over
            continue
        assert found != known[repr(needs)], option
