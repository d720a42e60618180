"""A row a step in a CSV file, by Lightning's logger, with what a resumed run needs on top."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from l2p import distributed
from l2p.files import write_text
from l2p.training.engine.after_step import AfterStep
from l2p.training.engine.module import StepModule

READ_EVERY = 16  # steps between two looks at a GPU's numbers, each of which waits for it; a CPU's are read in every step


def waits(value: torch.Tensor) -> bool:
    """Whether reading a value stops the device that computes it."""
    return value.device.type == "cuda"


class _Writer(ExperimentWriter):
    """Lightning's writer, into a file of its own name; rows of steps before `first` stay."""

    def __init__(self, path: Path, first: int) -> None:
        self.NAME_METRICS_FILE, self.first = path.name, first
        super().__init__(str(path.parent))

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        kept = [row for row in read_log(path) if int(row["step"]) < self.first]
        if not kept:
            path.unlink(missing_ok=True)
            return
        self.metrics_keys = list(kept[0])
        text = io.StringIO()
        writer = csv.DictWriter(text, self.metrics_keys)
        writer.writeheader()
        writer.writerows(kept)
        write_text(path, text.getvalue())


class CsvLogger(CSVLogger):
    """Lightning's CSV logger at one path. A resumed run drops the rows it writes again, and half a row that a kill left."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent, name="", version="", flush_logs_every_n_steps=1)
        self.path = path

    def open(self, first: int) -> None:
        """Begin to write at this step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._experiment = _Writer(self.path, first)


class CsvLog(AfterStep):
    """Logs every step to the CSV file and to the other loggers: seconds, learning rate, and every term.

    A GPU's terms are read :data:`READ_EVERY` steps at a time, and before a checkpoint is written.
    """

    def __init__(self, path: Path) -> None:
        self.logger = CsvLogger(path)
        self.seconds_before = 0.0
        self.psnr: float | None = None  # set by a preview, written with the same step
        self._started = time.monotonic()
        self._opened = False
        self._pending: list[tuple[int, dict[str, Any], dict[str, torch.Tensor], float | None]] = []

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all resumptions."""
        return self.seconds_before + time.monotonic() - self._started

    def on_train_start(self, trainer: pl.Trainer, pl_module: StepModule) -> None:
        self._started = time.monotonic()

    def after_step(self, trainer: pl.Trainer, pl_module: StepModule) -> None:
        if distributed.rank():
            return
        step = trainer.global_step
        if not self._opened:
            self.logger.open(step)
            self._opened = True
        row: dict[str, Any] = {"seconds": round(self.seconds, 3)}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        self._pending.append((step, row, dict(pl_module.terms), self.psnr))
        self.psnr = None
        if len(self._pending) == READ_EVERY or not any(map(waits, pl_module.terms.values())):
            self.flush(trainer)

    def flush(self, trainer: pl.Trainer) -> None:
        """Write the rows whose numbers were not read yet."""
        if not self._pending:
            return
        values = [value.double().flatten() for *_, terms, _ in self._pending for value in terms.values()]
        read = iter(torch.cat(values).tolist())
        for step, row, terms, psnr in self._pending:
            row |= {name: next(read) for name in terms}
            self.logger.log_metrics({**row, "psnr": "" if psnr is None else psnr}, step)
            if psnr is not None:
                row["psnr"] = psnr
            for logger in trainer.loggers:
                logger.log_metrics(row, step)
        self._pending = []
        self.logger.save()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: StepModule, checkpoint: dict[str, Any]
    ) -> None:
        self.flush(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: StepModule) -> None:
        self.flush(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: StepModule, exception: BaseException) -> None:
        self.flush(trainer)

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
