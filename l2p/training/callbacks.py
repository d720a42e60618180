"""What happens around a training step: guard and clip, record, preview, stop on request, and keep a checkpoint.

Where several processes train, all of them look and decide alike, and the first writes.

Their order matters and is the order of `Trainer(callbacks=...)`: the average moves before anything looks at it, and the
checkpoint comes last, so that a run killed after it has every earlier row of its log on disk.
"""

from __future__ import annotations

import csv
import io
import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from l2p import processes
from l2p.errors import UserError
from l2p.files import atomic_path, remove, write_text
from l2p.training.after_step import AfterStep
from l2p.training.module import DistillModule
from l2p.training.sharded import is_sharded, load_checkpoint


class NaNGuard(pl.Callback):
    """Clips gradients by their norm, and stops the stage before a non-finite number reaches the weights.

    Args:
        gradient_clip: largest gradient norm; 0 clips nothing, the norm is still measured and guarded.
        checkpoint: where the last good state is, for the message.
    """

    def __init__(self, gradient_clip: float, checkpoint: Path):
        self.gradient_clip, self.checkpoint = gradient_clip, checkpoint

    def on_before_backward(self, trainer: pl.Trainer, pl_module: DistillModule, loss: torch.Tensor) -> None:
        loss = pl_module.terms["loss"]  # of all processes
        if not torch.isfinite(loss):
            bad = [
                name
                for name, value in pl_module.terms.items()
                if name != "loss" and not torch.isfinite(value)
            ]
            self._stop(trainer, pl_module, f"the loss is {float(loss)} (from {', '.join(bad) or 'the sum'})")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: DistillModule, optimizer: torch.optim.Optimizer
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip or math.inf)
        norm = norm.full_tensor() if is_sharded(norm) else norm
        pl_module.terms["grad_norm"] = norm.detach()
        # In fp16 an overflowing gradient is daily bread: the scaler skips that step and lowers its scale.
        if not torch.isfinite(norm) and getattr(trainer.precision_plugin, "scaler", None) is None:
            self._stop(trainer, pl_module, f"the gradient norm is {float(norm)}")

    def _stop(self, trainer: pl.Trainer, pl_module: DistillModule, what: str) -> None:
        stage, step = pl_module.stage_name, trainer.global_step
        kept = (
            f"the last good checkpoint is {self.checkpoint}"
            if self.checkpoint.exists()
            else "no checkpoint yet"
        )
        raise UserError(
            f"{stage} stopped at step {step}: {what}; {kept}. Lower {stage}.learning_rate or raise {stage}.warmup_steps"
        )


class CsvLog(AfterStep):
    """One row a step in a CSV file: step, seconds, learning rate, gradient norm, PSNR where measured, every term.

    A resumed run first drops the rows it is about to write again, and half a row that a kill left behind.
    """

    def __init__(self, path: Path):
        self.path = path
        self.seconds_before = 0.0
        self.psnr: float | None = None  # set by a preview, written with the same step
        self._started = time.monotonic()
        self._columns: list[str] = []

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all resumptions."""
        return self.seconds_before + time.monotonic() - self._started

    def on_train_start(self, trainer: pl.Trainer, pl_module: DistillModule) -> None:
        self._started = time.monotonic()

    def after_step(self, trainer: pl.Trainer, pl_module: DistillModule) -> None:
        if processes.rank():
            return
        terms = {name: float(value) for name, value in pl_module.terms.items()}
        row = {
            "step": trainer.global_step,
            "seconds": round(self.seconds, 3),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "grad_norm": terms.pop("grad_norm"),
            "psnr": "" if self.psnr is None else self.psnr,
            **terms,
        }
        self.psnr = None
        if not self._columns:
            self._columns = list(row)
            self._drop_rows_from(row["step"])
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row.values())

    def _drop_rows_from(self, step: int) -> None:
        rows = read_log(self.path)
        kept = (
            [row for row in rows if int(row["step"]) < step]
            if rows and list(rows[0]) == self._columns
            else []
        )
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(self._columns)
        writer.writerows(row.values() for row in kept)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before = state_dict["seconds"]


def read_log(path: Path) -> list[dict[str, str]]:
    """Whole rows of a stage's log, oldest first; [] where there is none."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]  # a line without its end is half a row
    return list(csv.DictReader(lines))


class Preview(AfterStep):
    """Calls `measure(step)` every `every` steps: it paints the held-out pairs and gives their PSNR in dB."""

    def __init__(self, every: int, measure: Callable[[int], float], record: CsvLog):
        self.every, self.measure, self.record = every, measure, record

    def after_step(self, trainer: pl.Trainer, pl_module: DistillModule) -> None:
        if self.every and trainer.global_step % self.every == 0:
            self.record.psnr = self.measure(trainer.global_step)


class Interrupt(AfterStep):
    """Ctrl-C lets the running step end and be kept, then stops the stage; a second Ctrl-C stops at once.

    Where several processes train, SIGTERM means the same (a cluster sends it when a job's time is up), and all of them
    stop after the same step, whichever was asked.
    """

    def __init__(self) -> None:
        self.requested = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: DistillModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._handle)
            if processes.size() > 1:
                signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, signum: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def after_step(self, trainer: pl.Trainer, pl_module: DistillModule) -> None:
        self.requested = processes.any_of(self.requested)
        if self.requested:
            trainer.should_stop = True


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

    def after_step(self, trainer: pl.Trainer, pl_module: DistillModule) -> None:
        step = trainer.global_step
        if (self.every and step % self.every == 0) or step >= trainer.max_steps or trainer.should_stop:
            trainer.save_checkpoint(self.path)
            if self.other is not None and not processes.rank():
                remove(self.other)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: DistillModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["l2p"] = {**self.tag, "step": trainer.global_step}
