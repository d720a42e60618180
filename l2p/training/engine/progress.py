"""What a person sees while a stage trains: a bar with losses and the time left, or a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from l2p.console import Console
from l2p.training.engine.after_step import AfterStep
from l2p.training.engine.log import READ_EVERY
from l2p.training.module import DistillModule

CONSOLE = Console(stderr=True)
LINES = 10  # lines a stage writes where there is no terminal


class Bar:
    """Progress of one piece of work: `update(done, note)`. Silent where `visible` is False."""

    def __init__(self, title: str, total: int, visible: bool = True):
        self.title, self.total, self.visible = title, total, visible
        self._started, self._first, self._told = time.monotonic(), 0, -1
        self._bar: Progress | None = None

    def start(self, done: int = 0) -> None:
        self._started, self._first = time.monotonic(), done
        if self.visible and CONSOLE.is_terminal:
            columns = (TextColumn("{task.description:>10}"), BarColumn(30), MofNCompleteColumn())
            times = (
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, *times, console=CONSOLE)
            self._task = self._bar.add_task(self.title, total=self.total, completed=done, note="")
            self._bar.start()

    def update(self, done: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self.visible and (tenth := done * LINES // max(1, self.total)) != self._told:
            self._told = tenth
            seconds = time.monotonic() - self._started
            left = seconds / max(1, done - self._first) * (self.total - done)
            CONSOLE.print(
                f"{self.title} {done}/{self.total}  {note}  {seconds:.0f} s, {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def bar(title: str, total: int, visible: bool = True) -> Iterator[Bar]:
    """A started `Bar` that is stopped whatever happens."""
    shown = Bar(title, total, visible)
    shown.start()
    try:
        yield shown
    finally:
        shown.stop()


class TrainingBar(AfterStep):
    """The bar of a training stage, with its loss terms."""

    def __init__(self, title: str, total: int, visible: bool = True):
        self.bar = Bar(title, total, visible)
        self._note = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: DistillModule) -> None:
        self.bar.start(trainer.global_step)

    def after_step(self, trainer: pl.Trainer, pl_module: DistillModule) -> None:
        if pl_module.device.type != "cuda" or trainer.global_step % READ_EVERY == 0:
            self._note = "  ".join(
                f"{name.rpartition('/')[2]} {float(value):.3g}" for name, value in pl_module.terms.items()
            )
        self.bar.update(trainer.global_step, self._note)

    def teardown(self, trainer: pl.Trainer, pl_module: DistillModule, stage: str) -> None:
        self.bar.stop()
