"""Qwen-Image (and Qwen-Image-2512) behind the teacher protocol.

Border with diffusers' ``QwenImagePipeline``: time runs our way and the output is ``u``; tokens are packed as FLUX
packs them; latents are normalised by a mean and a deviation for each channel, and its VAE, which knows films, sees a
picture as one frame. The guided velocity is scaled to the length, token by token, of the one with the prompt. What
guidance steers away from is the prompt " ", as the model card has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from l2p.teachers.flux import from_tokens, to_tokens
from l2p.teachers.protocol import Conditioning, LatentGeometry, Published, Teacher
from l2p.teachers.schedules import even_flow_times, shift_of


class QwenImageTeacher(Teacher):
    """Wraps the modules of a loaded ``QwenImagePipeline``; frozen, in evaluation mode."""

    pipeline_class = "QwenImagePipeline"
    denoiser_class = "QwenImageTransformer2DModel"
    published = (
        Published("Qwen/Qwen-Image", 20.4, "apache-2.0"),
        Published("Qwen/Qwen-Image-2512", 20.4, "apache-2.0"),
    )

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        prompts = [" "] if empty else list(prompts)
        embeds, mask = pipeline.encode_prompt(
            prompts, device=pipeline.text_encoder.device, max_sequence_length=512
        )
        return embeds, mask, None

    def read_geometry(self) -> LatentGeometry:
        return LatentGeometry(self.transformer.config.in_channels // 4, self.vae.spatial_compression_ratio, 2)

    def guide(self, positive: Tensor, negative: Tensor, guidance_scale: float) -> Tensor:
        guided = self.pack(super().guide(positive, negative, guidance_scale))
        length = self.pack(positive).norm(dim=-1, keepdim=True)
        return self.unpack(guided * (length / guided.norm(dim=-1, keepdim=True)))

    def times(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        return even_flow_times(
            self.scheduler, num_inference_steps, shift_of(self.scheduler, self.tokens(height, width))
        )

    def _velocity(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        tokens, grid = to_tokens(z_t.to(self.transformer.dtype))
        u = self.transformer(
            hidden_states=tokens,
            timestep=t.to(z_t.device, torch.float32),
            guidance=None,
            encoder_hidden_states_mask=conditioning.mask if conditioning.padded else None,
            encoder_hidden_states=conditioning.embeds.to(tokens.dtype),
            img_shapes=[[(1, *grid)]] * len(z_t),
            return_dict=False,
        )[0]
        return from_tokens(u, grid).to(z_t.dtype)

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        return tuple(
            torch.tensor(v).view(1, -1, 1, 1, 1).to(z) for v in (config.latents_mean, config.latents_std)
        )

    def encode(self, images: Tensor) -> Tensor:
        raw = self.vae.encode(images.to(self.vae.dtype)[:, :, None]).latent_dist.mean
        mean, std = self._statistics(raw)
        return ((raw - mean) / std)[:, :, 0].to(images.dtype)

    def decode(self, z: Tensor) -> Tensor:
        mean, std = self._statistics(z)
        raw = z[:, :, None] * std + mean
        return self.vae.decode(raw.to(self.vae.dtype), return_dict=False)[0][:, :, 0].to(z.dtype)
