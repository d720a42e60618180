"""FLUX.1 (dev, schnell) behind the teacher protocol.

Border with diffusers' ``FluxPipeline``: time runs our way and the output is ``u``; a token holds 2 x 2 latent cells
in (channel, row, column) order; T5 reads 512 tokens, pads included and unmasked, and CLIP gives one vector. ``dev``
takes its guidance as an input; ``schnell`` takes none. The schedule starts from even times and is shifted by the
scheduler, for ``dev`` by the number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from l2p.teachers.protocol import Conditioning, LatentGeometry, Published, Teacher
from l2p.teachers.schedules import even_flow_times, shift_of


class FluxTeacher(Teacher):
    """Wraps the modules of a loaded ``FluxPipeline``; frozen, in evaluation mode."""

    pipeline_class = "FluxPipeline"
    denoiser_class = "FluxTransformer2DModel"
    published = (
        Published("black-forest-labs/FLUX.1-dev", 11.9, "flux-1-dev-non-commercial-license"),
        Published("black-forest-labs/FLUX.1-schnell", 11.9, "apache-2.0", variant="schnell"),
    )

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        embeds, pooled, _ = pipeline.encode_prompt(list(prompts), device=pipeline.text_encoder.device)
        return embeds, None, pooled

    def read_geometry(self) -> LatentGeometry:
        return LatentGeometry(self.transformer.config.in_channels // 4, self.vae_compression, 2)

    @property
    def guidance_kind(self) -> Literal["classifier-free", "input", "none"]:
        return "input" if self.transformer.config.guidance_embeds else "none"

    def times(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        return even_flow_times(
            self.scheduler, num_inference_steps, shift_of(self.scheduler, self.tokens(height, width))
        )

    def _velocity(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        tokens, grid = to_tokens(z_t.to(self.transformer.dtype))
        conditioning = conditioning.to(dtype=tokens.dtype)
        guidance = None
        if self.guidance_kind == "input":
            guidance = torch.full([len(z_t)], guidance_scale, device=z_t.device)
        u = self.transformer(
            hidden_states=tokens,
            timestep=t.to(z_t.device, torch.float32),
            guidance=guidance,
            pooled_projections=conditioning.pooled,
            encoder_hidden_states=conditioning.embeds,
            txt_ids=torch.zeros(conditioning.embeds.shape[1], 3, device=z_t.device),
            img_ids=grid_ids(*grid, z_t.device),
            return_dict=False,
        )[0]
        return from_tokens(u, grid).to(z_t.dtype)


def to_tokens(z: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Latents [B, c, H, W] as diffusers' FLUX packs them, [B, h w, 4 c] in (channel, row, column) order; (h, w)."""
    packed = F.pixel_unshuffle(z, 2)
    return packed.flatten(2).transpose(1, 2), tuple(packed.shape[2:])


def from_tokens(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`to_tokens`."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), 2)


def grid_ids(height: int, width: int, device: torch.device) -> Tensor:
    """Positions (0, row, column) [h w, 3] of image tokens."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return F.pad(torch.cartesian_prod(rows, columns).float(), (1, 0))
