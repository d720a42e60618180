"""Sana behind the teacher protocol: linear attention on the latents of a 32x autoencoder (DC-AE).

Border with diffusers' ``SanaPipeline``: time runs our way, in thousandths, and the output is ``u``; DPM-Solver++ walks
flow sigmas; Gemma reads the prompt behind a fixed instruction, and the empty one without it; its pads are masked.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from l2p.teachers.protocol import Conditioning, Published, Teacher


class SanaTeacher(Teacher):
    """Wraps the modules of a loaded ``SanaPipeline``; frozen, in evaluation mode."""

    pipeline_class = "SanaPipeline"
    denoiser_class = "SanaTransformer2DModel"
    published = (
        Published(
            "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
            1.6,
            "NSCL v2-custom",
            channels=32,
            compression=32,
            packing=1,
        ),
    )

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        device = pipeline.text_encoder.device
        if empty:  # the pipeline reads what it steers away from in this way alone
            read = pipeline.encode_prompt(list(prompts), True, device=device)
            return read[2], read[3], None
        instruction = (
            inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        )
        read = pipeline.encode_prompt(
            list(prompts), False, device=device, complex_human_instruction=instruction
        )
        return read[0], read[1], None

    @property
    def vae_compression(self) -> int:
        return 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)

    @property
    def core_options(self) -> dict[str, Any]:
        return {"whole_timesteps": type(self.scheduler).__name__ == "DPMSolverMultistepScheduler"}

    def times(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        self.geometry.latent_shape(height, width)
        self.scheduler.set_timesteps(num_inference_steps)
        return self.scheduler.sigmas.clone().float()

    def _velocity(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        dtype, config = self.transformer.dtype, self.transformer.config
        thousandths = t.to(z_t.device) * self.scheduler.config.num_train_timesteps
        if self.core_options["whole_timesteps"]:
            # The scheduler cuts its timesteps to whole numbers; what is added makes up for t's rounding.
            thousandths = (thousandths + 1e-3).floor()
        u = self.transformer(
            z_t.to(dtype),
            encoder_hidden_states=conditioning.embeds.to(dtype),
            encoder_attention_mask=conditioning.mask,
            timestep=thousandths * config.timestep_scale,
            return_dict=False,
        )[0]
        return u[:, : z_t.shape[1]].to(z_t.dtype)

    def encode(self, images: Tensor) -> Tensor:
        raw = self.vae.encode(images.to(self.vae.dtype), return_dict=False)[0]
        return (raw * self.vae.config.scaling_factor).to(images.dtype)
