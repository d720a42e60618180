"""What is said of published checkpoints: sizes that count up to what `l2p teachers` prints, names that are found."""

from __future__ import annotations

import diffusers
import pytest
import torch

from l2p.errors import UserError
from l2p.teachers import FAMILIES, published_as, published_configs, tiny


@pytest.mark.parametrize("name", published_configs())
def test_a_published_configuration_has_the_parameters_that_are_told(name):
    family, published = published_as(name)
    with torch.device("meta"):
        network = getattr(diffusers, family.denoiser_class)(**published_configs()[name])
    billions = sum(p.numel() for p in network.parameters()) / 1e9
    assert published.parameters == pytest.approx(billions, abs=0.05)


def test_every_name_says_which_tiny_pipeline_stands_for_it():
    names = [published.name for family in FAMILIES.values() for published in family.published]
    assert len(set(names)) == len(names)
    assert {tiny.name_for(name) for name in names} == set(tiny.PIPELINES)
    assert tiny.name_for("black-forest-labs/FLUX.1-schnell@main") == "FluxPipeline (schnell)"


@pytest.mark.parametrize("name", ["FluxPipeline (schnell)", "Flux2KleinPipeline (distilled)", "DiTPipeline"])
def test_a_folder_says_it_too(name, tmp_path):
    tiny.save(name, tmp_path / "pipeline")
    assert tiny.name_for(tmp_path / "pipeline") == name
    with pytest.raises(UserError, match="what ann/mine is cannot be known before it is here"):
        tiny.name_for("ann/mine")
