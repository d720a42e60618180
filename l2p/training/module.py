"""The Lightning module: one student with its optimiser, and a handful of objectives.

It knows no objective by name: each gets a `StepContext` and returns named terms, which are weighted, summed and logged.
Objectives that own networks train them first, within the same step (`training/critics.py`).
The teacher and the frozen helpers of objectives never enter `state_dict`, so a checkpoint holds what trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l2p import distributed
from l2p.errors import UserError
from l2p.objectives.base import FULL_BATCH, Batch, BatchShard, StepContext
from l2p.recipe import StageConfig
from l2p.training.critics import Critics
from l2p.training.data import step_generator
from l2p.training.engine.module import StepModule


class DistillModule(StepModule):
    """Trains `student` against the sum of weighted objectives.

    Args:
        teacher, lift: handed to the objectives; the teacher is frozen and not part of the module.
        objectives: name -> objective; each knows its own weight.
        config: the stage's steps, optimiser and learning rate.
        stage, seed: with the step number, what every random number depends on.
        shares: the parts of a step's batch that come one after the other, their gradients added up.
    """

    network_name = "student"

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        lift: Any,
        objectives: nn.ModuleDict,
        config: StageConfig,
        stage: str,
        seed: int,
        shares: Sequence[BatchShard] = (FULL_BATCH,),
    ):
        super().__init__(config, stage)
        self.student, self.objectives, self.shares = student, objectives, shares
        # DDP looks after the student; the critics bring their own gradients to the mean.
        self._ddp_params_and_buffers_to_ignore = [
            f"objectives.{name}" for name, _ in (*objectives.named_parameters(), *objectives.named_buffers())
        ]
        self._foreign = {"teacher": teacher, "lift": lift}  # in a dictionary, so that nothing is registered
        self.seed = seed
        self._critics_state: dict[str, Any] | None = (
            None  # of a checkpoint, until the module is on its device
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step, part = self.global_step, batch_idx % len(self.shares)
        self.schedule.step_update(step)
        context = StepContext(
            student=self.student,
            batch=batch,
            generator=step_generator(self.seed, self.stage_name, step),
            step=step,
            num_steps=self.student.spec.num_steps,
            share=self.shares[part],
            **self._foreign,
        )
        terms = self.critics.step(context)
        loss = torch.zeros((), device=self.device)
        for name, objective in self.objectives.items():
            with context.purpose(name):
                found = objective(context)
            for term, value in found.items():
                terms[f"{name}/{term}"] = value.detach()
                loss = loss + objective.weight * value
        terms = distributed.mean({"loss": loss.detach(), **terms})
        if part:  # the mean over the parts so far
            terms = {name: self.terms[name] + (terms[name] - self.terms[name]) / (part + 1) for name in terms}
        self.terms = terms
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The student's; the critics' are stepped by hand and hidden from Lightning, whose step is the student's."""
        self.critics = Critics(self.objectives.items(), self.config.gradient_clip)
        if self._critics_state is not None:
            self.critics.load_state_dict(self._critics_state)
        return super().configure_optimizers()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["critics"] = self.critics.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if any("param_groups" not in state for state in checkpoint["optimizer_states"]):
            raise UserError("the checkpoint is of an older version's optimizer: rerun with --resume never")
        self._critics_state = checkpoint["critics"]
