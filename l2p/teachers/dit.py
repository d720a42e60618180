"""DiT on ImageNet's classes behind the teacher protocol: a "prompt" is a class, by its number or its name.

Border with diffusers' ``DiTPipeline``: a variance-preserving schedule (:mod:`l2p.teachers.schedules`); the network also
predicts a variance, which is dropped; class 1000 is no class. A class travels as one token of two numbers, its
hundreds and the rest, which half precision holds exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from l2p.errors import UserError
from l2p.teachers.protocol import Conditioning, Published
from l2p.teachers.sdxl import NoiseTeacher

CLASSES = 1000  # ImageNet's


class DiTTeacher(NoiseTeacher):
    """Wraps the modules of a loaded ``DiTPipeline``; frozen, in evaluation mode."""

    pipeline_class = "DiTPipeline"
    denoiser_class = "DiTTransformer2DModel"
    published = (Published("facebook/DiT-XL-2-256", 0.75, "cc-by-nc-4.0", channels=4),)

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        transformer = pipeline.components["transformer"]  # a student's reader of prompts has none
        classes = CLASSES if transformer is None else transformer.config.num_embeds_ada_norm
        numbers = [classes] if empty else [_class(prompt, pipeline.labels, classes) for prompt in prompts]
        digits = [[number // 100, number % 100] for number in numbers]
        return torch.tensor(digits, dtype=torch.float32)[:, None], None, None

    def _noise(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        if x.shape[2] != x.shape[3]:
            raise UserError(
                "this teacher draws squares alone: set teacher.height and teacher.width to one number"
            )
        classes = class_numbers(conditioning)
        return self.transformer(x, timestep=timestep, class_labels=classes, return_dict=False)[0]


def class_numbers(conditioning: Conditioning) -> Tensor:
    """Classes [B] of what :meth:`DiTTeacher.read_prompts` made."""
    hundreds, rest = conditioning.embeds[:, 0].round().long().unbind(1)
    return 100 * hundreds + rest


def _class(prompt: str, labels: dict[str, int], classes: int) -> int:
    if prompt.strip().isdigit() and int(prompt) < classes:
        return int(prompt)
    if prompt.strip() in labels:
        return labels[prompt.strip()]
    raise UserError(
        f"{prompt!r} is no class of this teacher: expected a number from 0 to {classes - 1} or a label"
    )
