"""Exponential moving average of one network, in fp32 whatever the network trains in.

Only trainable parameters are averaged: frozen ones equal their average, and a teacher never enters. In bfloat16 a decay
of 0.999 rounds every move away, hence fp32. The decay warms up as (1 + n) / (10 + n), so early averages forget the
start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from l2p.training.engine.after_step import AfterStep
from l2p.training.engine.sharded import is_sharded


class EMA:
    """fp32 average of a module's trainable parameters, keyed by name.

    Args:
        decay: in [0, 1); 0 follows the weights exactly.
        warmup: start from a small decay and let it rise to `decay`.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: bool = True):
        self.decay, self.warmup, self.num_updates = decay, warmup, 0
        self.average: dict[str, Tensor] = {
            name: p.detach().to(torch.float32, copy=True)
            for name, p in module.named_parameters()
            if p.requires_grad
        }

    def decay_at(self, n: int) -> float:
        """Decay of update number `n` (1 is the first)."""
        return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights."""
        self.num_updates += 1
        weight = 1 - self.decay_at(self.num_updates)
        pairs = [(self.average[name], p.detach()) for name, p in self._parameters(module)]
        if not pairs:
            return
        averages, weights = ([_here(x) for x in side] for side in zip(*pairs, strict=True))
        torch._foreach_lerp_(averages, [x.float() for x in weights], weight)  # a few launches for all of them

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into the module's parameters (in their dtype)."""
        for name, parameter in self._parameters(module):
            parameter.copy_(self.average[name])

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[nn.Module]:
        """The module with averaged weights inside the `with`, its own weights again after it."""
        own = {name: p.detach().clone() for name, p in self._parameters(module)}
        self.copy_to(module)
        try:
            yield module
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters(module):
                    parameter.copy_(own[name])

    def to(self, device: torch.device | str) -> EMA:
        self.average = {name: value.to(device) for name, value in self.average.items()}
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore an average. Raises ValueError where the parameter names differ."""
        if state["average"].keys() != self.average.keys():
            odd = sorted(state["average"].keys() ^ self.average.keys())[:3]
            raise ValueError(
                f"the average is of another network: {', '.join(odd)} in one and not in the other"
            )
        self.num_updates = state["num_updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)

    def _parameters(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in module.named_parameters() if name in self.average)


def _here(x: Tensor) -> Tensor:
    """This process' share of a tensor."""
    return x.to_local() if is_sharded(x) else x


class EMACallback(AfterStep):
    """Keeps an `EMA` of `getattr(pl_module, attribute)`, updated after each optimiser step and checkpointed."""

    def __init__(self, decay: float, warmup: bool = True, attribute: str = "student"):
        self.decay, self.warmup, self.attribute = decay, warmup, attribute
        self.ema: EMA | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.ema = EMA(getattr(pl_module, self.attribute), self.decay, self.warmup)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ema.to(pl_module.device)

    def after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ema.update(getattr(pl_module, self.attribute))

    def state_dict(self) -> dict[str, Any]:
        return self.ema.state_dict() if self.ema is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ema.load_state_dict(state_dict)
