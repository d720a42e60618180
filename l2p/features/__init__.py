"""Frozen feature networks: one interface for losses and for evaluation, one way to name them.

    encoder[@LAYERS]                 down blocks of the teacher's VAE encoder, from the picture on (all of them)
    transformer[@LAYERS]             main blocks of the teacher's transformer (the last one)
    lpips[=FILE]                     VGG-16 as LPIPS has it
    timm:NAME[@LAYERS][=FILE]        a model of timm (its last layer), with weights from the Hub or from a safetensors file;
                                     FILE may be `random`: untrained weights, for comparison
    timm:hf-hub:USER/NAME[@LAYERS]   a timm model that somebody published; a revision may follow the name, @REVISION

LAYERS are numbers from 0, or from the end by -1, such as ``@3,7,11``.
"""

from l2p.features.base import FeatureNetwork, Probe
from l2p.features.load import check_features, load_features
from l2p.features.perceptual import PRESETS, PerceptualDistance, networks_of, shrink, shrink_factor, unit
from l2p.features.spec import FeatureSpec, is_non_commercial, license_of

__all__ = [
    "PRESETS",
    "FeatureNetwork",
    "FeatureSpec",
    "PerceptualDistance",
    "Probe",
    "check_features",
    "networks_of",
    "is_non_commercial",
    "license_of",
    "load_features",
    "shrink",
    "shrink_factor",
    "unit",
]
