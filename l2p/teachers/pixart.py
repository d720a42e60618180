"""PixArt-Sigma behind the teacher protocol: a transformer that predicts noise, and a variance that is dropped.

Border with diffusers' ``PixArtSigmaPipeline``: a variance-preserving schedule (:mod:`l2p.teachers.schedules`) walked by
DPM-Solver++; T5 reads 300 tokens with its pads masked.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from l2p.teachers.protocol import Conditioning, Published
from l2p.teachers.sdxl import NoiseTeacher


class PixArtTeacher(NoiseTeacher):
    """Wraps the modules of a loaded ``PixArtSigmaPipeline``; frozen, in evaluation mode."""

    pipeline_class = "PixArtSigmaPipeline"
    denoiser_class = "PixArtTransformer2DModel"
    published = (Published("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", 0.61, "openrail++", channels=4),)

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        from diffusers.utils import is_bs4_available, is_ftfy_available

        clean = (
            is_bs4_available() and is_ftfy_available()
        )  # without them diffusers does not clean either, but says so
        embeds, mask, _, _ = pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=pipeline.text_encoder.device,
            clean_caption=clean,
        )
        return embeds, mask, None

    def _noise(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return self.transformer(
            x,
            encoder_hidden_states=conditioning.embeds.to(x),
            encoder_attention_mask=conditioning.mask,
            timestep=timestep,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
