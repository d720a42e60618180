"""Low-rank changes to frozen layers (LoRA, arXiv 2106.09685): large cores move at the price of a small one.

They are parametrisations of torch's own, so that every layer keeps its name and its forward; a student is saved with
the changes multiplied into its weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """``W + up down`` for a weight W [out, in]; nothing at first, since ``up`` is zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.down = nn.Parameter(torch.randn(rank, in_features).to(weight) * in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(out_features, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_lora(module: nn.Module, rank: int) -> None:
    """Give every linear layer inside a frozen module a trainable change of at most this rank."""
    for layer in [m for m in module.modules() if isinstance(m, nn.Linear)]:
        change = LowRank(layer.weight, min(rank, *layer.weight.shape))
        parametrize.register_parametrization(layer, "weight", change)


def merge_lora(student: nn.Module) -> nn.Module:
    """The same student with its low-rank changes multiplied into the weights, as plain layers again."""
    for layer in list(student.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return student
