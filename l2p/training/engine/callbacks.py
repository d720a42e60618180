"""What happens around a training step: guard and clip, record, preview, stop on request, and keep a checkpoint.

Where several processes train, all of them look and decide alike, and the first writes.

Their order matters and is the order of `Trainer(callbacks=...)`: the average moves before anything looks at it, and the
checkpoint comes last, so that a run killed after it has every earlier row of its log on disk.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from l2p import distributed
from l2p.errors import UserError
from l2p.training.engine.after_step import AfterStep
from l2p.training.engine.log import READ_EVERY, CsvLog, waits
from l2p.training.engine.module import StepModule
from l2p.training.engine.sharded import is_sharded
from l2p.training.engine.stopping import SIGNALS, StopRequest


class NaNGuard(pl.Callback):
    """Clips gradients by their norm, and stops the stage before a non-finite number reaches the weights.

    On a GPU it asks every :data:`READ_EVERY` steps and before a checkpoint is written: the weights may then be broken, the
    checkpoint never is.

    Args:
        gradient_clip: largest gradient norm; 0 clips nothing, the norm is still measured and guarded.
        checkpoint: where the last good state is, for the message.
        section: of the recipe that holds the optimiser's settings, for the message.
    """

    def __init__(self, gradient_clip: float, checkpoint: Path, section: str):
        self.gradient_clip, self.checkpoint, self.section = gradient_clip, checkpoint, section
        self._finite: torch.Tensor | None = None  # on a GPU: whether all was since the last look

    def on_before_backward(self, trainer: pl.Trainer, pl_module: StepModule, loss: torch.Tensor) -> None:
        loss = pl_module.terms["loss"]  # of all processes
        if waits(loss):
            return self._remember(loss)
        if not torch.isfinite(loss):
            bad = [
                name
                for name, value in pl_module.terms.items()
                if name != "loss" and not torch.isfinite(value)
            ]
            self._stop(trainer, pl_module, f"the loss is {float(loss)} (from {', '.join(bad) or 'the sum'})")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: StepModule, optimizer: torch.optim.Optimizer
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip or math.inf)
        norm = norm.full_tensor() if is_sharded(norm) else norm
        pl_module.terms["grad_norm"] = norm.detach()
        if waits(norm) and getattr(trainer.precision_plugin, "scaler", None) is None:
            self._remember(norm)
            if (trainer.global_step + 1) % READ_EVERY == 0:
                self._look(trainer, pl_module)
            return
        # In fp16 an overflowing gradient is daily bread: the scaler skips that step and lowers its scale.
        if not torch.isfinite(norm) and getattr(trainer.precision_plugin, "scaler", None) is None:
            self._stop(trainer, pl_module, f"the gradient norm is {float(norm)}")

    def _remember(self, value: torch.Tensor) -> None:
        finite = torch.isfinite(value.detach()).all()
        self._finite = finite if self._finite is None else self._finite & finite

    def _look(self, trainer: pl.Trainer, pl_module: StepModule) -> None:
        finite, self._finite = self._finite, None
        if finite is not None and not finite:
            self._stop(
                trainer, pl_module, f"a loss or a gradient of the last {READ_EVERY} steps is not finite"
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: StepModule, checkpoint: dict[str, Any]
    ) -> None:
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: StepModule) -> None:
        self._look(trainer, pl_module)

    def _stop(self, trainer: pl.Trainer, pl_module: StepModule, what: str) -> None:
        stage, step = pl_module.stage_name, trainer.global_step
        kept = (
            f"the last good checkpoint is {self.checkpoint}"
            if self.checkpoint.exists()
            else "no checkpoint yet"
        )
        raise UserError(
            f"{stage} stopped at step {step}: {what}; {kept}. Lower {self.section}.learning_rate or "
            f"raise {self.section}.warmup_steps"
        )


class Preview(AfterStep):
    """Calls `measure(step)` every `every` steps, and at the last one if `last`: it draws a picture, and gives its PSNR in dB
    or None."""

    def __init__(
        self, every: int, measure: Callable[[int], float | None], record: CsvLog, last: bool = False
    ):
        self.every, self.measure, self.record, self.last = every, measure, record, last

    def after_step(self, trainer: pl.Trainer, pl_module: StepModule) -> None:
        step = trainer.global_step
        if self.every and (step % self.every == 0 or (self.last and step >= trainer.max_steps)):
            self.record.psnr = self.measure(step)


class Interrupt(AfterStep):
    """Ctrl-C and SIGTERM (which a cluster sends when a job's time is up) let the running step end and be kept, then stop
    the stage; a second one stops at once. Of several processes all stop after the same step, whichever was asked.
    """

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def on_train_start(self, trainer: pl.Trainer, pl_module: StepModule) -> None:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Lightning has put its own handlers in place
            for number in SIGNALS:
                signal.signal(number, self.request.handle)

    def after_step(self, trainer: pl.Trainer, pl_module: StepModule) -> None:
        if distributed.all_reduce_any(self.request.requested):
            self.request.signum = self.request.signum or signal.SIGINT
            trainer.should_stop = True
