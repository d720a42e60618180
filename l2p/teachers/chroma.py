"""Chroma behind the teacher protocol: FLUX.1's shape without CLIP and guidance input, read with real guidance.

Border with diffusers' ``ChromaPipeline``: as FLUX.1, but T5's pads are masked, all but one, which Chroma was trained to
see (``lengths`` counts it). diffusers up to 0.42.1 hands this mask to the attention as numbers, which hides no pad
(huggingface/diffusers issue 12116); here it is a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from l2p.teachers.flux import FluxTeacher, from_tokens, grid_ids, to_tokens
from l2p.teachers.protocol import Conditioning, Published


class ChromaTeacher(FluxTeacher):
    """Wraps the modules of a loaded ``ChromaPipeline``; frozen, in evaluation mode."""

    pipeline_class = "ChromaPipeline"
    denoiser_class = "ChromaTransformer2DModel"
    published = (Published("lodestones/Chroma1-HD", 8.9, "apache-2.0"),)

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        device = pipeline.text_encoder.device
        read = pipeline.encode_prompt(list(prompts), device=device, do_classifier_free_guidance=False)
        return read[0], read[2], None

    @property
    def guidance_kind(self) -> Literal["classifier-free", "input", "none"]:
        return "classifier-free"

    def _velocity(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        tokens, grid = to_tokens(z_t.to(self.transformer.dtype))
        u = self.transformer(
            hidden_states=tokens,
            timestep=t.to(z_t.device, torch.float32),
            encoder_hidden_states=conditioning.embeds.to(tokens.dtype),
            txt_ids=torch.zeros(conditioning.embeds.shape[1], 3, device=z_t.device),
            img_ids=grid_ids(*grid, z_t.device),
            attention_mask=torch.nn.functional.pad(conditioning.mask, (0, tokens.shape[1]), value=True),
            return_dict=False,
        )[0]
        return from_tokens(u, grid).to(z_t.dtype)
