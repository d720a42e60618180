"""A training of one network by one loss: teacher, head, judge, growing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from l2p.config import BatchSize, CountOrZero, Float, LearningRate, Steps, Weight, config
from l2p.errors import UserError
from l2p.training.engine.checkpoints import check_tag, load_averaged
from l2p.training.engine.fit import Job, fit
from l2p.training.engine.module import OptimSettings, StepModule
from l2p.training.run_folder import TrainingFolder


@config
class OptimConfig:
    """Steps, batch and optimiser of one network.

    The learning rate follows a cosine down to 0 over all steps; with ``decay_steps`` it stays constant and falls in
    a line over that many at the end, so that a run can be made longer before it has come there, at no loss.
    """

    steps: CountOrZero = 1000
    batch_size: BatchSize = 32
    learning_rate: LearningRate = 1e-3
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: Weight = 0.01
    warmup_steps: CountOrZero = 50
    decay_steps: Steps | None = None
    gradient_clip: Weight = 1.0
    ema_decay: Annotated[Float, Field(ge=0, le=0.99999)] = 0.998
    checkpoint_every: Steps = 250


@dataclass
class Task:
    """What a training does in a step. Batch and random numbers of step n depend on n alone, or are kept by `state`.

    Attributes:
        loss: the named, weighted terms of a step, of what `batch` gives; their sum is minimised.
        batch: what a step is computed from, on the device; the step's number itself by default.
        preview: draws a picture of the averaged network, in evaluation mode, at every checkpoint.
        optimizer: gives an optimiser and a schedule (with ``step_update(step)``); by default those of `config`.
        state, restore: give and take back what else a later step depends on, such as a generator's state.
    """

    network: nn.Module
    config: OptimSettings
    loss: Callable[[Any], dict[str, Tensor]]
    batch: Callable[[int], Any] = int
    preview: Callable[[nn.Module, Path], None] | None = None
    optimizer: Callable[[], tuple[torch.optim.Optimizer, Any]] | None = None
    state: Callable[[], dict[str, Tensor]] = dict
    restore: Callable[[dict[str, Tensor]], None] | None = None


class TaskModule(StepModule):
    """Trains a task's network."""

    def __init__(self, task: Task, stage: str) -> None:
        super().__init__(task.config, stage)
        self.network = task.network
        self._task = [task]  # in a list, so that nothing of it is registered twice

    @property
    def task(self) -> Task:
        return self._task[0]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the task makes it where it is needed

    def on_fit_start(self) -> None:
        self.network.train()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.task.optimizer is None:
            return super().configure_optimizers()
        optimizer, self.schedule = self.task.optimizer()
        return optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.schedule.step_update(self.global_step)
        terms = self.task.loss(batch)
        loss = sum(terms.values())
        self.terms = {"loss": loss.detach(), **{name: value.detach() for name, value in terms.items()}}
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["task"] = self.task.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.task.restore is not None:
            self.task.restore(checkpoint["task"])


class _Steps(Dataset):
    def __init__(self, task: Task) -> None:
        self.task = task

    def __getitem__(self, step: int) -> Any:
        return self.task.batch(step)


class _Remaining(Sampler[int]):
    """The steps from `start` on; its length is the whole training's, as Lightning counts batches."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))


class TaskData(pl.LightningDataModule):
    """A task's batches, each made when its step begins."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def train_dataloader(self) -> DataLoader:
        start = self.trainer.global_step if self.trainer is not None else 0
        steps = _Remaining(start, self.task.config.steps)
        return DataLoader(_Steps(self.task), batch_size=None, sampler=steps, num_workers=0)


def scaled(dtype: torch.dtype) -> str:
    """Lightning's precision for a task that brings its own autocast: a loss scale for fp16, nothing for the others."""
    return "16-mixed" if dtype == torch.float16 else "32-true"


def run_task(
    task: Task,
    folder: TrainingFolder,
    stage: str,
    device: torch.device,
    precision: str = "32-true",
    section: str = "optim",
) -> float:
    """Train a task's network in place, from its checkpoint where there is one, and leave the averaged weights in it.

    Args:
        precision: Lightning's; "32-true" where the task brings its own autocast, "16-mixed" adds a loss scale.
        section: of the recipe that holds the optimiser's settings.

    Returns:
        seconds of training, over all resumptions.

    Raises:
        UserError: the loss is not finite, or the checkpoint is damaged or of other settings.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the step under way was finished and kept.
    """
    checkpoint = folder.latest(stage)
    if checkpoint is not None:
        step = check_tag(folder, stage, checkpoint)
        if step > task.config.steps:
            raise UserError(
                f"{checkpoint} is of step {step}, beyond the {task.config.steps} steps that are wanted: choose another "
                "output_dir, or start anew"
            )
    module = TaskModule(task, stage)

    def preview(step: int) -> None:
        task.network.eval()
        with torch.no_grad():
            task.preview(task.network, folder.preview(stage, step))
        task.network.train()

    job = Job(
        folder,
        stage,
        device,
        precision,
        preview=preview if task.preview else None,
        preview_every=task.config.checkpoint_every,
        preview_last=True,
        section=section,
        resume_from=checkpoint,
    )
    found = fit(module, TaskData(task), job)
    load_averaged(task.network, folder.checkpoint(stage), "network")
    task.network.to(device).eval()
    return found["seconds"]
