"""From a name to a network; networks are shared by all who ask for the same one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from torch import nn

from l2p.errors import UserError
from l2p.features.base import FeatureNetwork
from l2p.features.lpips import LpipsFeatures
from l2p.features.spec import HUB, RANDOM, FeatureSpec
from l2p.features.teacher import EncoderFeatures, TransformerFeatures

if TYPE_CHECKING:
    from l2p.teachers import Teacher

_shared: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()  # modules of timm in use, by identity
_lpips: WeakValueDictionary[str, LpipsFeatures] = WeakValueDictionary()


def check_features(spec: FeatureSpec) -> None:
    """Check what can be known of a network before anything is loaded. Raises: UserError."""
    if spec.kind == "timm" and not spec.model.startswith(HUB):
        from l2p.features.timm_models import check_model

        check_model(spec.model, needs_weights=not spec.file)
    if spec.file and spec.file != RANDOM and not Path(spec.file).is_file():
        raise UserError(f"{spec}: no weights at {spec.file}")


def load_features(name: str, teacher: Teacher | None = None) -> FeatureNetwork:
    """The feature network of a name, see :mod:`l2p.features`; weights that are in use already are not loaded again.

    Args:
        teacher: whose encoder or transformer it may be.

    Raises:
        UserError: a name, layer or file that is wrong, weights that cannot be had, or no teacher to take them from.
    """
    spec = FeatureSpec.parse(name)
    if spec.kind in ("encoder", "transformer"):
        if teacher is None:
            raise UserError(f"features {name!r} are a teacher's, and there is none here: choose timm:NAME")
        return (
            EncoderFeatures(spec, teacher) if spec.kind == "encoder" else TransformerFeatures(spec, teacher)
        )
    if spec.kind == "lpips":
        network = _lpips.get(spec.identity)
        if network is None:
            network = _lpips[spec.identity] = LpipsFeatures(spec)
        return network
    from l2p.features.timm_models import TimmFeatures, build_model

    module = _shared.get(spec.identity)
    if module is None:
        module = _shared[spec.identity] = build_model(spec)
    return TimmFeatures(spec, module)
