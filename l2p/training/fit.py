"""One stage of training under Lightning: the trainer, its callbacks, and how a stop is told from an end."""

from __future__ import annotations

import importlib.util
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import nn

from l2p import processes
from l2p.errors import UserError, warn
from l2p.extras import install_hint
from l2p.objectives.base import WHOLE
from l2p.training.callbacks import (
    AtomicCheckpointIO,
    CsvLog,
    Interrupt,
    KeepLast,
    NaNGuard,
    Preview,
)
from l2p.training.ema import EMACallback
from l2p.training.module import DistillModule
from l2p.training.progress import TrainingBar
from l2p.training.sharded import load_checkpoint
from l2p.training.strategies import environment, trainer_settings

if TYPE_CHECKING:
    from l2p.recipe import LoggingConfig, StageConfig
    from l2p.training.stages import Run

PRECISION = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed", torch.float32: "32-true"}


def fit(
    run: Run,
    stage: str,
    config: StageConfig,
    student: nn.Module,
    objectives: nn.ModuleDict,
    preview_steps: int,
    resume_from: Path | None,
) -> dict[str, Any]:
    """Train `student` for `config.steps` steps, or what is left of them; the stage's checkpoint holds the result.

    Returns:
        steps, seconds of training over all resumptions, and the terms of the last step.

    Raises:
        UserError: a loss or gradient that is not finite, or a checkpoint of other settings.
        KeyboardInterrupt: Ctrl-C; the step under way was finished and kept.
    """
    folder, seed, sharded = run.folder, run.recipe.seed, run.strategy == "fsdp"
    path, other = folder.checkpoint(stage, sharded), folder.checkpoint(stage, not sharded)
    if resume_from is not None:
        check_checkpoint(run, stage, resume_from)
    data = run.data(stage, config)
    shares = getattr(data, "shares", (WHOLE,))
    if len(shares) != config.accumulate:
        raise UserError(
            f"{stage}.accumulate is {config.accumulate}, but this stage takes a step's batch whole: set it to 1"
        )
    module = DistillModule(student, run.teacher, run.lift, objectives, config, stage, seed, shares)
    ema, log, interrupt = EMACallback(config.ema_decay), CsvLog(folder.log(stage)), Interrupt()

    def preview(step: int) -> float:
        with ema.ema.swapped(student):
            return run.held_out.show(student, [preview_steps], folder.preview(stage, step))[0]

    callbacks = [
        NaNGuard(config.gradient_clip, path),
        ema,
        Preview(config.preview_every, preview, log),
        log,
        TrainingBar(stage, config.steps, run.progress),
        interrupt,
        KeepLast(path, config.checkpoint_every, {"stage": stage, "settings": folder.settings(stage)}, other),
    ]
    with _quiet(), _deterministic(), _signals_restored():
        trainer = pl.Trainer(
            **trainer_settings(run.strategy, run.device),
            accumulate_grad_batches=config.accumulate,
            precision=PRECISION[run.dtype],
            max_steps=config.steps,
            max_epochs=-1,
            callbacks=callbacks,
            logger=not processes.rank() and _loggers(run.recipe.logging, folder.path, run.recipe.name, stage),
            log_every_n_steps=1,
            default_root_dir=folder.path,
            deterministic="warn",
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[environment(run.strategy)]
            if sharded
            else [environment(run.strategy), AtomicCheckpointIO()],
        )
        try:
            trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
        except SystemExit:  # Lightning's answer to a Ctrl-C that it caught itself
            raise KeyboardInterrupt from None
    if interrupt.requested:
        raise KeyboardInterrupt
    last = {name: float(value) for name, value in module.terms.items()}
    return {"steps": trainer.global_step, "seconds": round(log.seconds, 2), "last_step": last}


def check_checkpoint(run: Run, stage: str, path: Path) -> None:
    """Raises UserError where a checkpoint is not of this stage with these settings."""
    tag = load_checkpoint(path, only=())["l2p"]
    if tag["stage"] != stage:
        raise UserError(f"{path} is a checkpoint of the {tag['stage']} stage, not of {stage}")
    run.folder.check_settings(stage, tag["settings"])


def check_loggers(config: LoggingConfig) -> None:
    """Warn of loggers that the recipe names and that are not installed: the run goes on with its CSV."""
    for kind in ("tensorboard", "wandb"):
        if getattr(config, kind) and not _installed(kind):
            warn(
                f"logging.{kind} needs the package {kind}: {install_hint(kind)}, or set logging.{kind}=false; the losses are in logs/*.csv only"
            )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _loggers(config: LoggingConfig, folder: Path, name: str, stage: str) -> list[Any] | bool:
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
    return loggers or False


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice, which does not fit a stage of one endless epoch, kept from the terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings(
            "ignore", message=r".*(num_workers|resuming from a checkpoint that ended before).*"
        )
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _deterministic() -> Iterator[None]:
    """The process' determinism switches as they were, after Lightning has set them for training."""
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory,
        False,
    )
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Ctrl-C means again what it meant before: the interrupt callback takes it, and so does Lightning."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
