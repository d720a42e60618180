"""The kind of callback that acts once a step, however many batches are added up into it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


class AfterStep(pl.Callback):
    """Calls `after_step` after each step of the optimiser, of which several batches may be a part."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.after_step(trainer, pl_module)

    def after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise NotImplementedError
