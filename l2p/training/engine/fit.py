"""One stage of training under Lightning: the trainer, its callbacks, and how a stop is told from an end."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from l2p.errors import UserError
from l2p.objectives.base import FULL_BATCH
from l2p.training.engine.callbacks import Interrupt, NaNGuard, Preview
from l2p.training.engine.checkpoints import AtomicCheckpointIO, KeepLast
from l2p.training.engine.ema import EMACallback
from l2p.training.engine.log import CsvLog
from l2p.training.engine.module import StepModule
from l2p.training.engine.progress import TrainingBar
from l2p.training.engine.stopping import Stopped, StopRequest, stop_signals
from l2p.training.engine.strategies import environment, trainer_settings
from l2p.training.run_folder import TrainingFolder

PRECISION = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed", torch.float32: "32-true"}


@dataclass
class Job:
    """Where and how a stage trains.

    Attributes:
        precision: Lightning's.
        strategy: "one" process, "ddp" or "fsdp".
        accumulate: parts of a step's batch whose gradients are added up.
        preview: called with a step while the averaged weights are in place; gives the PSNR of what it drew, or None.
        preview_every: steps between previews, 0 for none; `preview_last` adds one at the end.
        loggers: besides the CSV file, of the first process.
        section: of the recipe that holds the optimiser's settings; the stage's own name by default.
        resume_from: checkpoint of this stage to go on from.
    """

    folder: TrainingFolder
    stage: str
    device: torch.device
    precision: str
    strategy: str = "one"
    accumulate: int = 1
    preview: Callable[[int], float | None] | None = None
    preview_every: int = 0
    preview_last: bool = False
    loggers: Sequence[Any] = ()
    progress: bool = True
    section: str = ""
    resume_from: Path | None = None


def fit(module: StepModule, data: pl.LightningDataModule, job: Job) -> dict[str, Any]:
    """Train `module` for the steps of its settings, or what is left of them; the stage's checkpoint holds the result.

    Returns:
        steps, seconds of training over all resumptions, and the terms of the last step.

    Raises:
        UserError: a loss or gradient that is not finite, or a checkpoint of another network.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the step under way was finished and kept.
    """
    folder, stage, config, sharded = job.folder, job.stage, module.config, job.strategy == "fsdp"
    path, other = folder.checkpoint(stage, sharded), folder.checkpoint(stage, not sharded)
    if len(getattr(data, "shares", (FULL_BATCH,))) != job.accumulate:
        raise UserError(
            f"{stage}.accumulate is {job.accumulate}, but this stage takes a step's batch whole: set it to 1"
        )
    stop, log = StopRequest(), CsvLog(folder.log(stage))
    average = EMACallback(config.ema_decay, attribute=module.network_name)

    def preview(step: int) -> float | None:
        with average.ema.swapped(module.trained):
            return job.preview(step)

    callbacks = [
        NaNGuard(config.gradient_clip, path, job.section or stage),
        average,
        Preview(job.preview_every if job.preview else 0, preview, log, job.preview_last),
        log,
        TrainingBar(stage, config.steps, job.progress),
        Interrupt(stop),
        KeepLast(path, config.checkpoint_every, {"stage": stage, "settings": folder.settings(stage)}, other),
    ]
    plugins = [environment(job.strategy)] if sharded else [environment(job.strategy), AtomicCheckpointIO()]
    with _quiet(), _deterministic(), stop_signals(stop):
        trainer = pl.Trainer(
            **trainer_settings(job.strategy, job.device),
            accumulate_grad_batches=job.accumulate,
            precision=job.precision,
            max_steps=config.steps,
            max_epochs=-1,
            callbacks=callbacks,
            logger=list(job.loggers) or False,
            log_every_n_steps=1,
            default_root_dir=folder.path,
            deterministic="warn",
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=plugins,
        )
        try:
            trainer.fit(module, data, ckpt_path=job.resume_from, weights_only=True)
        except SystemExit:  # Lightning's answer to a Ctrl-C that it caught itself
            raise Stopped(stop.signum or signal.SIGINT) from None
    stop.check()
    last = {name: float(value) for name, value in module.terms.items()}
    return {"steps": trainer.global_step, "seconds": round(log.seconds, 2), "last_step": last}


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
