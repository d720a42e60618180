"""FLUX.2 (dev, klein) behind the teacher protocol.

Border with diffusers' ``Flux2Pipeline`` and ``Flux2KleinPipeline``: time runs our way and the output is ``u``; the
pipeline's latents are 2 x 2 cells already folded into 128 channels in (channel, row, column) order, normalised by the
running mean and variance that the VAE keeps for them; text tokens sit at positions (0, 0, 0, i), image tokens at
(0, row, column, 0). ``dev`` takes its guidance as an input, ``klein-base`` is guided classifier-free, the distilled
``klein`` not at all. The shift follows tokens and steps by diffusers' empirical formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from l2p.teachers.flux import from_tokens, grid_ids, to_tokens
from l2p.teachers.protocol import Conditioning, LatentGeometry, Published, Teacher
from l2p.teachers.schedules import even_flow_times

NON_COMMERCIAL = "flux-non-commercial-license"


class Flux2Teacher(Teacher):
    """Wraps the modules of a loaded ``Flux2Pipeline``; frozen, in evaluation mode."""

    pipeline_class = "Flux2Pipeline"
    denoiser_class = "Flux2Transformer2DModel"
    published = (Published("black-forest-labs/FLUX.2-dev", 32.2, NON_COMMERCIAL, 32),)

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return pipeline.encode_prompt(list(prompts), device=pipeline.text_encoder.device)[0], None, None

    def read_geometry(self) -> LatentGeometry:
        return LatentGeometry(self.transformer.config.in_channels // 4, self.vae_compression, 2)

    @property
    def guidance_kind(self) -> Literal["classifier-free", "input", "none"]:
        return "input" if self.transformer.config.guidance_embeds else "none"

    def times(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        mu = compute_empirical_mu(self.tokens(height, width), num_inference_steps)
        return even_flow_times(self.scheduler, num_inference_steps, mu)

    def _velocity(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        tokens, grid = to_tokens(z_t.to(self.transformer.dtype))
        text, image = position_ids(conditioning.embeds.shape[1], grid, z_t.device)
        guidance = None
        if self.guidance_kind == "input":
            guidance = torch.full([len(z_t)], guidance_scale, device=z_t.device)
        u = self.transformer(
            hidden_states=tokens,
            timestep=t.to(z_t.device, torch.float32),
            guidance=guidance,
            encoder_hidden_states=conditioning.embeds.to(tokens.dtype),
            txt_ids=text.expand(len(z_t), -1, -1),
            img_ids=image.expand(len(z_t), -1, -1),
            return_dict=False,
        )[0]
        return from_tokens(u, grid).to(z_t.dtype)

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        norm, eps = self.vae.bn, self.vae.config.batch_norm_eps
        mean, std = norm.running_mean, (norm.running_var + eps).sqrt()
        return mean.view(1, -1, 1, 1).to(z), std.view(1, -1, 1, 1).to(z)

    def encode(self, images: Tensor) -> Tensor:
        raw = F.pixel_unshuffle(self.vae.encode(images.to(self.vae.dtype)).latent_dist.mean, 2)
        mean, std = self._statistics(raw)
        return F.pixel_shuffle((raw - mean) / std, 2).to(images.dtype)

    def decode(self, z: Tensor) -> Tensor:
        folded = F.pixel_unshuffle(z, 2)
        mean, std = self._statistics(folded)
        raw = F.pixel_shuffle(folded * std + mean, 2)
        return self.vae.decode(raw.to(self.vae.dtype), return_dict=False)[0].to(z.dtype)


class Flux2KleinTeacher(Flux2Teacher):
    """Wraps the modules of a loaded ``Flux2KleinPipeline``; frozen, in evaluation mode."""

    pipeline_class = "Flux2KleinPipeline"
    published = (
        Published("black-forest-labs/FLUX.2-klein-4B", 3.9, "apache-2.0", 32, variant="distilled"),
        Published("black-forest-labs/FLUX.2-klein-9B", 9.1, NON_COMMERCIAL, 32, variant="distilled"),
        Published("black-forest-labs/FLUX.2-klein-base-4B", 3.9, "apache-2.0", 32),
        Published("black-forest-labs/FLUX.2-klein-base-9B", 9.1, NON_COMMERCIAL, 32),
    )

    def __init__(self, pipeline, name: str, revision: str | None = None, license: str = "unknown") -> None:
        self._distilled = bool(pipeline.config.is_distilled)
        super().__init__(pipeline, name, revision, license)

    @property
    def guidance_kind(self) -> Literal["classifier-free", "input", "none"]:
        return "none" if self._distilled else "classifier-free"


def position_ids(words: int, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions (time, row, column, word): [L, 4] of text tokens, [h w, 4] of image tokens."""
    text = F.pad(torch.arange(words, device=device)[:, None].float(), (3, 0))
    return text, F.pad(grid_ids(*grid, device), (0, 1))
