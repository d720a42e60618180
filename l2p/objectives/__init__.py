"""What a student is trained for: small terms that a recipe composes by name and weight.

A new objective is a file with an :class:`~l2p.objectives.base.Objective` and a line in ``OBJECTIVES``; its knobs are
the keyword arguments of its constructor, checked here against the recipe. `docs/objectives.md` walks through one.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from l2p.errors import UserError
from l2p.objectives.adversarial import AdversarialObjective
from l2p.objectives.base import Batch, CriticObjective, Objective, StepContext
from l2p.objectives.color import ColorObjective
from l2p.objectives.distribution import DistributionObjective
from l2p.objectives.drift import DriftObjective
from l2p.objectives.energy import EnergyObjective
from l2p.objectives.flow import FlowObjective
from l2p.objectives.latents import LatentsObjective
from l2p.objectives.mean_flow import MeanFlowObjective
from l2p.objectives.pairs import PairsObjective
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
    "color": ColorObjective,
    "energy": EnergyObjective,
    "spectrum": SpectrumObjective,
}

_KIND_NAMES = {int: "an integer", bool: "true or false", str: "a text"}

__all__ = [
    "OBJECTIVES",
    "Batch",
    "CriticObjective",
    "Objective",
    "StepContext",
    "build_objectives",
    "check_combinations",
    "check_objectives",
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
    """The knobs of the objectives of nonzero weight, checked by name and kind; needs no teacher, for a dry run.

    Raises:
        UserError: as :func:`build_objectives`.
    """
    checked = {}
    for name, knobs in config.items():
        if name not in OBJECTIVES:
            raise UserError(f"no objective {name!r}{_hint(name, OBJECTIVES)}")
        if not isinstance(knobs, Mapping):
            raise UserError(f"objectives.{name} must hold knobs such as 'weight: 1', got {knobs!r}")
        kinds = _kinds(OBJECTIVES[name])
        for knob, value in knobs.items():
            if knob not in kinds:
                raise UserError(f"objectives.{name} has no knob {knob!r}{_hint(str(knob), kinds)}")
            _check_kind(f"objectives.{name}.{knob}", value, kinds[knob])
        if knobs.get("weight", 1.0) != 0:
            checked[name] = {str(knob): _plain(value) for knob, value in knobs.items()}
    if not checked:
        raise UserError(f"nothing to train: give an objective a weight above 0 ({', '.join(OBJECTIVES)})")
    return checked


def check_combinations(stage: StageConfig, recipe: Recipe) -> None:
    """Refuse objectives that cannot work in this recipe, before anything is loaded. Raises: UserError."""
    for name, knobs in check_objectives(stage.objectives).items():
        parameters = inspect.signature(OBJECTIVES[name].__init__).parameters
        defaults = {knob: parameters[knob].default for knob in _kinds(OBJECTIVES[name])}
        OBJECTIVES[name].check({**defaults, **knobs}, recipe, stage)


def _kinds(objective: type[Objective]) -> dict[str, Any]:
    """Type of every knob: of the arguments of the constructor that have a default."""
    hints = get_type_hints(objective.__init__, localns={"Teacher": object, "Lift": object})
    parameters = inspect.signature(objective.__init__).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.default is not inspect.Parameter.empty}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if _is_sequence(value) else value


def _is_sequence(value: Any) -> bool:
    return not isinstance(value, (str, bytes, Mapping)) and hasattr(value, "__iter__")


def _hint(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(sorted(known))}"


def _check_kind(key: str, value: Any, kind: Any) -> None:
    if get_origin(kind) is Literal:
        right, wanted = (
            isinstance(value, str) and value in get_args(kind),
            " or ".join(map(repr, get_args(kind))),
        )
    elif get_origin(kind) in (list, tuple):
        right, wanted = _is_sequence(value) and len(value) > 0, "a list with at least one item"
        if right:
            for item in value:
                _check_kind(key, item, get_args(kind)[0])
    elif kind is float:
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        wanted = "a finite number"
    else:
        right, wanted = (
            isinstance(value, kind) and (kind is bool or not isinstance(value, bool)),
            _KIND_NAMES[kind],
        )
    if not right:
        raise UserError(f"{key} must be {wanted}, got {value!r}")
