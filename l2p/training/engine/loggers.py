"""Loggers besides the CSV file: TensorBoard and Weights & Biases, where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p.errors import warn
from l2p.extras import install_hint

if TYPE_CHECKING:
    from l2p.recipe import LoggingConfig


def check_loggers(config: LoggingConfig) -> None:
    """Warn of loggers that the recipe names and that are not installed: the run goes on with its CSV."""
    for kind in ("tensorboard", "wandb"):
        if getattr(config, kind) and not _installed(kind):
            warn(
                f"logging.{kind} needs the package {kind}: {install_hint(kind)}, or set logging.{kind}=false; the losses are in logs/*.csv only"
            )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def extra_loggers(config: LoggingConfig, folder: Path, name: str, stage: str) -> list[Any]:
    """TensorBoard and Weights & Biases where the recipe asks for them; the CSV is written in any case."""
    loggers: list[Any] = []
    if config.tensorboard and _installed("tensorboard"):
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(folder / "logs", name="tensorboard", version=stage))
    if config.wandb and _installed("wandb"):
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(
            WandbLogger(project=config.wandb_project, name=f"{name}-{stage}", save_dir=folder / "logs")
        )
    return loggers
