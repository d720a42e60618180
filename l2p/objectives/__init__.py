"""What a student is trained for: small terms that a recipe composes by name and weight.

A new objective is a file with an :class:`~l2p.objectives.base.Objective` and a line in ``OBJECTIVES``; its knobs are
the keyword arguments of its constructor, checked here against the recipe. `docs/objectives.md` walks through one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from l2p.config import validate
from l2p.errors import UserError
from l2p.features import check_features, license_of
from l2p.objectives.adversarial import AdversarialObjective
from l2p.objectives.alignment import AlignmentObjective
from l2p.objectives.base import Batch, CriticObjective, Objective, StepContext
from l2p.objectives.color import ColorObjective
from l2p.objectives.distribution import DistributionObjective
from l2p.objectives.drift import DriftObjective
from l2p.objectives.energy import EnergyObjective
from l2p.objectives.flow import FlowObjective
from l2p.objectives.latents import LatentsObjective
from l2p.objectives.mean_flow import MeanFlowObjective
from l2p.objectives.pairs import PairsObjective
from l2p.objectives.spec import objective_specs, options_of
from l2p.objectives.spectrum import SpectrumObjective

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import Recipe, StageConfig
    from l2p.teachers import Teacher

OBJECTIVES: dict[str, type[Objective]] = {
    "flow": FlowObjective,
    "latents": LatentsObjective,
    "pairs": PairsObjective,
    "drift": DriftObjective,
    "adversarial": AdversarialObjective,
    "distribution": DistributionObjective,
    "mean_flow": MeanFlowObjective,
    "alignment": AlignmentObjective,
    "color": ColorObjective,
    "energy": EnergyObjective,
    "spectrum": SpectrumObjective,
}

__all__ = [
    "OBJECTIVES",
    "Batch",
    "CriticObjective",
    "Objective",
    "StepContext",
    "build_objectives",
    "check_combinations",
    "check_objectives",
    "networks_seen",
    "sees_foreign_networks",
]


def build_objectives(
    config: Mapping[str, Mapping[str, Any]], *, teacher: Teacher, lift: Lift
) -> nn.ModuleDict:
    """The objectives of a stage, by name; those of weight 0 are left out.

    Args:
        config: from the recipe, for example ``{"pairs": {"weight": 1, "latent": 0.5}, "drift": {"weight": 0}}``.

    Raises:
        UserError: an unknown objective or knob (with the nearest name), a value of the wrong kind, or nothing to train.
    """
    return nn.ModuleDict(
        {
            name: OBJECTIVES[name](teacher=teacher, lift=lift, **knobs)
            for name, knobs in check_objectives(config).items()
        }
    )


def check_objectives(config: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The options of the objectives of nonzero weight, checked by name, kind and range; for a dry run, too.

    Raises:
        UserError: as :func:`build_objectives`.
    """
    validate(objective_specs(), config, "objectives")
    chosen = {name: dict(options) for name, options in config.items() if options.get("weight", 1.0) != 0}
    if not chosen:
        raise UserError(f"nothing to train: give an objective a weight above 0 ({', '.join(OBJECTIVES)})")
    return chosen


def networks_seen(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Licences of the feature networks that a recipe's losses look through, by identity; nothing is loaded.

    Args:
        recipe: plain values, as a student's config keeps them; what an older version wrote is read as far as it goes.
    """
    found: dict[str, str] = {}
    for stage in ("transfer", "one_step", "match"):
        config = recipe.get(stage) or {}
        objectives = config.get("objectives") or {} if config.get("enabled", True) else {}
        for name, knobs in objectives.items():
            if name not in OBJECTIVES or not isinstance(knobs, Mapping):
                continue
            defaults = {option: value for option, (_, value) in options_of(OBJECTIVES[name]).items()}
            try:
                for spec in OBJECTIVES[name].networks_named({**defaults, **knobs}):
                    found[spec.identity] = license_of(spec)
            except (UserError, TypeError, ValueError, AttributeError):  # names of another version
                found[f"{name}: {knobs.get('features', knobs.get('perceptual_network'))}"] = "not recorded"
    return found


def sees_foreign_networks(name: str, options: Mapping[str, Any]) -> bool:
    """Whether an objective sees networks whose weights are not the teacher's, which cannot be made without numbers."""
    defaults = {option: default for option, (_, default) in options_of(OBJECTIVES[name]).items()}
    networks = OBJECTIVES[name].networks_named({**defaults, **options})
    return any(spec.kind in ("timm", "lpips") for spec in networks)


def check_combinations(stage: StageConfig, recipe: Recipe) -> None:
    """Refuse objectives that cannot work in this recipe, before anything is loaded. Raises: UserError."""
    for name, options in check_objectives(stage.objectives).items():
        defaults = {option: default for option, (_, default) in options_of(OBJECTIVES[name]).items()}
        for network in OBJECTIVES[name].networks_named({**defaults, **options}):
            check_features(network)
        OBJECTIVES[name].check({**defaults, **options}, recipe, stage)
