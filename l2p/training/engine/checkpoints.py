"""Checkpoints of a stage under way: whole or absent, tagged with what made them, checked when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from l2p import distributed
from l2p.errors import UserError
from l2p.files import atomic_path, remove
from l2p.training.engine.after_step import AfterStep
from l2p.training.engine.sharded import is_sharded, load_checkpoint, shard
from l2p.training.run_folder import TrainingFolder


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its name and moves it there whole; straight to the file, not through memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)  # through a Python file, so that a full disk is an OSError

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A file of one process, or a folder of several processes' shards, put together."""
        return load_checkpoint(Path(path))


class KeepLast(AfterStep):
    """Keeps the last checkpoint of a stage, in one file or in one folder of shards.

    Args:
        other: a checkpoint of the other kind, of an earlier part of the run, which goes when there is a newer one.
        every: steps between two checkpoints; the last step and an interrupted one are kept in any case.
        tag: put into the checkpoint under "l2p": which stage of which settings it belongs to.
    """

    def __init__(self, path: Path, every: int, tag: dict[str, Any], other: Path | None = None):
        self.path, self.every, self.tag, self.other = path, every, tag, other

    def after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if (self.every and step % self.every == 0) or step >= trainer.max_steps or trainer.should_stop:
            trainer.save_checkpoint(self.path)
            if self.other is not None and not distributed.rank():
                remove(self.other)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["l2p"] = {**self.tag, "step": trainer.global_step}


def check_tag(folder: TrainingFolder, stage: str, path: Path) -> int:
    """The step of a checkpoint. Raises UserError where it is not of this stage with these settings."""
    tag = load_checkpoint(path, only=())["l2p"]
    if tag["stage"] != stage:
        raise UserError(f"{path} is a checkpoint of the {tag['stage']} stage, not of {stage}")
    folder.check_settings(stage, tag["settings"])
    return tag["step"]


def load_averaged(network: nn.Module, path: Path, name: str = "student") -> None:
    """Fill a network, sharded or whole, with the moving average that a checkpoint holds.

    Args:
        name: of the network in its module.
    """
    shards = [value for value in network.state_dict().values() if is_sharded(value)]
    mesh = shards[0].device_mesh if shards else None
    prefix = f"{name}."
    wanted = (f"state_dict/{prefix}", "callbacks/EMACallback/average")
    checkpoint = load_checkpoint(path, wanted, mesh)
    own = {
        key.removeprefix(prefix): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
    state = {**own, **checkpoint["callbacks"]["EMACallback"]["average"]}
    if mesh is not None:
        held = {key for key, value in network.state_dict().items() if is_sharded(value)}
        state = {key: shard(value, mesh) if key in held else value for key, value in state.items()}
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f"{path} is of another {name}: start anew with --resume never") from error
