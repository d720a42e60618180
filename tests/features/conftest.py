"""Small models of timm with random weights in local files: nothing is downloaded."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Name -> (the model as timm makes it, its file): a transformer with a classifier, convolutions without."""
    folder, made = tmp_path_factory.mktemp("timm"), {}
    for name, classes in (("test_vit", 10), ("test_convnext", 0)):
        torch.manual_seed(len(made))
        model = timm.create_model(name, num_classes=classes).eval().requires_grad_(False)
        for (
            parameter
        ) in model.parameters():  # timm starts many at zero, which would hide what is read from where
            parameter.add_(0.05 * torch.randn(parameter.shape))
        save_file(model.state_dict(), folder / f"{name}.safetensors")
        made[name] = model, folder / f"{name}.safetensors"
    return made
