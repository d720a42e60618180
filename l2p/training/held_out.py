"""The gate of every stage: a handful of pairs that are never trained on, painted and compared with the teacher's.

A loss can fall while every picture stays noise; a picture cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2p import distributed
from l2p.evaluation.psnr_ssim import psnr
from l2p.images import labelled_grid, save_png, to_uint8
from l2p.objectives.base import Batch
from l2p.runtime import autocast


class HeldOut:
    """Pairs of noise and the teacher's picture, with a way to paint and measure a student on them.

    Args:
        batch: B pairs, on the device.
        prompts: B captions for the grid.
        dtype: of the forward pass.
    """

    def __init__(self, batch: Batch, prompts: list[str], dtype: torch.dtype):
        self.batch, self.prompts, self.dtype = batch, prompts, dtype

    @torch.no_grad()
    def generate(self, student: Any, num_steps: int) -> Tensor:
        """The student's pictures [B, 3, H, W] of the pairs' noise, one at a time (a preview must not set the memory)."""
        training = student.training
        student.eval()
        with autocast(self.batch.noise.device, self.dtype):
            pictures = [
                student.sample(self.batch.noise[i : i + 1], self.batch.conditioning[[i]], num_steps)
                for i in range(len(self.batch.noise))
            ]
        student.train(training)
        return torch.cat(pictures).float()

    def measure(self, student: Any, num_steps: int) -> float:
        """Mean PSNR in dB to the teacher's pictures."""
        return float(psnr(self.generate(student, num_steps), self.batch.images).mean())

    def show(self, student: Any, steps: Sequence[int], path: Path, label: str = "student") -> list[float]:
        """Save a grid: the teacher's row on top, then the student's, one row for each number of steps.

        Returns:
            mean PSNR in dB to the teacher's pictures, for each number of steps.
        """
        rows, figures = {"teacher": to_uint8(self.batch.images)}, []
        for num_steps in steps:
            pictures = self.generate(student, num_steps)
            figures.append(float(psnr(pictures, self.batch.images).mean()))
            rows[f"{label}\n{num_steps} step{'s' * (num_steps > 1)}"] = to_uint8(pictures)
        if distributed.rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(labelled_grid(rows, self.prompts), path)
        return figures
