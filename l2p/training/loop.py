"""The plain training loop of the teacher and the judge: one network, one loss, resumable at any step.

Batch ``n`` is a pure function of ``n``, so a checkpoint holds weights, optimiser, average and the step, nothing else.
(Distillation, with its stages and objectives, is a Lightning module: ``training/module.py``.)
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from l2p.config import BatchSize, CountOrZero, Float, LearningRate, Steps, Weight, config
from l2p.errors import UserError
from l2p.files import atomic_path
from l2p.training.ema import EMA
from l2p.training.optim import build_optimizer, build_schedule


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


def fit(
    network: nn.Module,
    loss: Callable[[int], dict[str, Tensor]],
    config: OptimConfig,
    folder: Path,
    name: str,
    preview: Callable[[nn.Module, Path], None] | None = None,
    resume: bool = True,
) -> float:
    """Train ``network`` in place and leave its averaged weights in it; returns the seconds spent in all.

    Args:
        loss: gives the named, weighted terms of step n; their sum is minimised.
        folder: holds ``NAME.ckpt``, ``NAME.csv`` and the previews.
        preview: draws a picture of the averaged network at every checkpoint.

    Raises:
        UserError: the loss is not finite, or the checkpoint is of another network.
    """
    optimizer = build_optimizer(network, config.optimizer, config.learning_rate, config.weight_decay)
    schedule = build_schedule(optimizer, config.steps, config.warmup_steps, config.decay_steps)
    ema = EMA(network, config.ema_decay)
    checkpoint, log = folder / f"{name}.ckpt", folder / f"{name}.csv"
    step, seconds = 0, 0.0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        try:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            ema.load_state_dict(state["ema"])
        except (RuntimeError, ValueError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"{checkpoint} is of other settings ({first}): delete it, or use --resume never"
            ) from None
        step, seconds = state["step"], state["seconds"]
    _truncate_log(log, step)

    def save() -> None:
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.state_dict(),
        }
        with atomic_path(checkpoint) as path:
            torch.save({**state, "step": step, "seconds": seconds}, path)
        if preview is not None:
            with ema.swapped(network):
                network.eval()
                preview(network, folder / f"{name}-{step:06d}.png")
                network.train()

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    network.train()
    with Progress(*columns) as progress, log.open("a", newline="") as file:
        task = progress.add_task(name, total=config.steps, completed=step)
        writer = csv.writer(file)
        mean: dict[str, float] = {}
        while step < config.steps:
            start = time.perf_counter()
            schedule.step_update(step)
            terms = loss(step)
            optimizer.zero_grad(set_to_none=True)
            sum(terms.values()).backward()
            norm = float(nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip))
            values = {key: float(value.detach()) for key, value in terms.items()}
            if not math.isfinite(norm + sum(values.values())):
                raise UserError(
                    f"{name}: the loss is not finite at step {step}; {checkpoint} is the last good state"
                )
            optimizer.step()
            ema.update(network)
            step += 1
            seconds += time.perf_counter() - start
            mean = {key: 0.98 * mean.get(key, value) + 0.02 * value for key, value in values.items()}
            if step % 10 == 0:
                if file.tell() == 0:
                    writer.writerow(["step", "seconds", *mean])
                writer.writerow([step, round(seconds, 1), *(f"{value:.6f}" for value in mean.values())])
                file.flush()
            told = " ".join(f"{key} {value:.4f}" for key, value in mean.items())
            progress.update(task, completed=step, description=f"{name}: {told}")
            if step % config.checkpoint_every == 0 or step == config.steps:
                save()
    ema.copy_to(network)
    network.eval()
    return seconds


def _truncate_log(path: Path, step: int) -> None:
    """Keep the header and the rows up to ``step``: what came after the checkpoint is run again."""
    if not path.exists():
        return
    rows = path.read_text().splitlines(keepends=True)
    kept = [
        row for i, row in enumerate(rows) if i == 0 or (row[:1].isdigit() and int(row.split(",")[0]) <= step)
    ]
    with atomic_path(path) as temporary:
        Path(temporary).write_text("".join(kept if step else []))
