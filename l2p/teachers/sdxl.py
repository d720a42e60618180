"""Stable Diffusion 1.5 and SDXL behind the teacher protocol: U-Nets that predict noise under a schedule that preserves
the variance, converted to flow time (:mod:`l2p.teachers.schedules`).

Border with diffusers' pipelines: SDXL also reads the size of the picture, and by its configuration steers away from
features of zeros where no negative prompt is given. A PNDM schedule (SD1.5's own) is read as Euler on the same
training steps: its four-step memory has no counterpart here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from l2p.teachers.protocol import Conditioning, LatentGeometry, Published, Teacher
from l2p.teachers.schedules import NoiseSchedule


class NoiseTeacher(Teacher):
    """A teacher whose network predicts the noise of a variance-preserving schedule."""

    def __init__(self, pipeline, name: str, revision: str | None = None, license: str = "unknown") -> None:
        super().__init__(pipeline, name, revision, license)
        if type(self.scheduler).__name__ == "PNDMScheduler":
            from diffusers import EulerDiscreteScheduler

            self.scheduler = EulerDiscreteScheduler.from_config(self.scheduler.config)
        self.schedule = NoiseSchedule(self.scheduler)

    def times(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        self.geometry.latent_shape(height, width)
        return self.schedule.times(num_inference_steps)

    @property
    def core_options(self) -> dict[str, Any]:
        return {"noise": self.schedule.settings}

    def start(self, eps: Tensor, t: Tensor) -> Tensor:
        return self.schedule.start(eps, t)

    def _velocity(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        x, timestep = self.schedule.model_input(z_t, t.to(z_t.device))
        eps = self._noise(x.to(self.transformer.dtype), timestep, conditioning)
        return self.schedule.velocity(z_t, eps[:, : z_t.shape[1]].to(z_t.dtype), t.to(z_t.device))

    def _noise(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Predicted noise [B, c or 2 c, H, W] (a learnt variance may follow it) of x at unit variance."""
        raise NotImplementedError


class SD15Teacher(NoiseTeacher):
    """Wraps the modules of a loaded ``StableDiffusionPipeline``; frozen, in evaluation mode."""

    pipeline_class = "StableDiffusionPipeline"
    denoiser_class = "UNet2DConditionModel"
    published = (
        Published(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            0.86,
            "creativeml-openrail-m",
            channels=4,
        ),
    )

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        embeds, _ = pipeline.encode_prompt(list(prompts), pipeline.text_encoder.device, 1, False)
        return embeds, None, None

    def read_geometry(self) -> LatentGeometry:
        # A U-Net has no tokens: these are the student's, of 2 x 2 cells as elsewhere.
        return LatentGeometry(self.transformer.config.in_channels, self.vae_compression, 2)

    def _noise(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return self.transformer(x, timestep, conditioning.embeds.to(x), return_dict=False)[0]


class SDXLTeacher(SD15Teacher):
    """Wraps the modules of a loaded ``StableDiffusionXLPipeline``; frozen, in evaluation mode."""

    pipeline_class = "StableDiffusionXLPipeline"
    published = (Published("stabilityai/stable-diffusion-xl-base-1.0", 2.57, "openrail++", channels=4),)

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        device = pipeline.text_encoder_2.device
        embeds, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), device=device, do_classifier_free_guidance=False
        )
        if empty and pipeline.config.force_zeros_for_empty_prompt:
            return torch.zeros_like(embeds), None, torch.zeros_like(pooled)
        return embeds, None, pooled

    def _noise(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = (side * self.geometry.compression for side in x.shape[2:])
        # the original size, the crop's corner, the size wanted: a whole picture of this size
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=x.dtype, device=x.device)
        added = {"text_embeds": conditioning.pooled.to(x), "time_ids": sizes.expand(len(x), -1)}
        return self.transformer(
            x, timestep, conditioning.embeds.to(x), added_cond_kwargs=added, return_dict=False
        )[0]
