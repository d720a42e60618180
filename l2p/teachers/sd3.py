"""Stable Diffusion 3 and 3.5 behind the teacher protocol.

Border with diffusers' ``StableDiffusion3Pipeline``: time runs our way, in thousandths, and the output is ``u``; the
transformer patches latents itself; two CLIPs and T5 are read side by side, padded and unmasked (77 + 256 tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from l2p.teachers.protocol import Conditioning, Published, Teacher
from l2p.teachers.schedules import shift_of


class SD3Teacher(Teacher):
    """Wraps the modules of a loaded ``StableDiffusion3Pipeline``; frozen, in evaluation mode."""

    pipeline_class = "StableDiffusion3Pipeline"
    denoiser_class = "SD3Transformer2DModel"
    published = (
        Published("stabilityai/stable-diffusion-3-medium-diffusers", 2.0, "stabilityai-ai-community"),
        Published("stabilityai/stable-diffusion-3.5-medium", 2.2, "stabilityai-ai-community"),
        Published("stabilityai/stable-diffusion-3.5-large", 8.1, "stabilityai-ai-community"),
    )

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), None, None, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
        )
        return embeds, None, pooled

    def times(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        tokens, dynamic = self.tokens(height, width), self.scheduler.config.use_dynamic_shifting
        mu = shift_of(self.scheduler, tokens, max_shift=1.16) if dynamic else None
        self.scheduler.set_timesteps(num_inference_steps, **({"mu": mu} if dynamic else {}))
        return self.scheduler.sigmas.clone().float()

    def _velocity(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        dtype = self.transformer.dtype
        conditioning = conditioning.to(dtype=dtype)
        return self.transformer(
            hidden_states=z_t.to(dtype),
            timestep=t.to(z_t.device) * self.scheduler.config.num_train_timesteps,
            encoder_hidden_states=conditioning.embeds,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )[0].to(z_t.dtype)
