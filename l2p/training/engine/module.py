"""What every training module has in common: a network, its optimiser and schedule, and a strict state of what trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from l2p.errors import UserError
from l2p.training.optim import build_optimizer, build_schedule


class OptimSettings(Protocol):
    """What a stage's settings say of the optimiser."""

    steps: int
    learning_rate: float
    optimizer: str
    weight_decay: float
    warmup_steps: int
    gradient_clip: float
    ema_decay: float
    checkpoint_every: int


class StepModule(pl.LightningModule):
    """A network under training.

    Attributes:
        network_name: attribute that holds the network whose weights train, are averaged and saved.
        terms: named values of the last step: "loss", the terms of the loss, and what callbacks add.
    """

    network_name = "network"

    def __init__(self, config: OptimSettings, stage: str) -> None:
        super().__init__()
        self.config, self.stage_name = config, stage
        self.terms: dict[str, Tensor] = {}

    @property
    def trained(self) -> nn.Module:
        return getattr(self, self.network_name)

    def configure_model(self) -> None:
        """The network comes as it is to be trained, sharded where that is asked for: nothing is left to do."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The network's optimiser; its schedule is a function of the step's number, which `training_step` sets."""
        config = self.config
        optimizer = build_optimizer(self.trained, config.optimizer, config.learning_rate, config.weight_decay)
        self.schedule = build_schedule(
            optimizer, config.steps, config.warmup_steps, getattr(config, "decay_steps", None)
        )
        return optimizer

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The network's weights, and whatever else trains: a frozen network can always be loaded again."""
        state = super().state_dict(*args, **kwargs)
        trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        own = f"{self.network_name}."
        return {name: value for name, value in state.items() if name.startswith(own) or name in trainable}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Strict in what `state_dict` holds. Raises UserError for the state of another network."""
        own = self.state_dict()
        odd = sorted(own.keys() ^ state_dict.keys())
        odd += [name for name in own.keys() & state_dict.keys() if own[name].shape != state_dict[name].shape]
        if odd:
            raise UserError(
                f"the checkpoint is of another {self.network_name} ({odd[0]} differs): rerun with --resume never"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)
