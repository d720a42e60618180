"""Z-Image (Tongyi-MAI/Z-Image, Z-Image-Turbo, and the bundled landscapes teacher) behind the teacher protocol.

Border with diffusers' ``ZImagePipeline``: its transformer takes ``1 - t`` and returns ``-u``; its latents are
``(raw - shift_factor) * scaling_factor``; its schedule is the scheduler's own, shifted by the picture's size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from l2p.errors import UserError
from l2p.teachers.protocol import Conditioning, LatentGeometry, Published, Teacher
from l2p.teachers.schedules import shift_of
from l2p.teachers.text import TextEncoder
from l2p.teachers.z_image_forward import batched_forward


class ZImageTeacher(Teacher):
    """Wraps the modules of a loaded ``ZImagePipeline``; frozen, in evaluation mode."""

    pipeline_class = "ZImagePipeline"
    denoiser_class = "ZImageTransformer2DModel"
    guidance_floor = 0.0
    published = (
        Published("Tongyi-MAI/Z-Image-Turbo", 6.2, "apache-2.0"),
        Published("Tongyi-MAI/Z-Image", 6.2, "apache-2.0"),
    )

    @classmethod
    def new_text_encoder(cls, pipeline) -> TextEncoder:
        return TextEncoder(pipeline.tokenizer, pipeline.text_encoder)

    def read_geometry(self) -> LatentGeometry:
        config = self.transformer.config
        return LatentGeometry(config.in_channels, self.vae_compression, config.all_patch_size[0])

    def guide(self, positive: Tensor, negative: Tensor, guidance_scale: float) -> Tensor:
        return positive + guidance_scale * (positive - negative)

    def times(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

        mu = shift_of(self.scheduler, self.tokens(height, width))
        self.scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(num_inference_steps), mu=mu)
        return self.scheduler.sigmas.clone().float()

    def _velocity(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        dtype = self.transformer.dtype
        tokens = self.pack(z_t.to(dtype))
        features, c = batched_forward(
            self.transformer, tokens, (1 - t).to(z_t.device), conditioning.to(dtype=dtype)
        )
        final = next(iter(self.transformer.all_final_layer.values()))
        grid = features.shape[1:3]
        return -self.unpack(final(features.flatten(1, 2), c=c).unflatten(1, grid)).to(z_t.dtype)

    def check_blocks(self, blocks: Sequence[int]) -> None:
        count = len(self.transformer.layers)
        if not all(-count <= block < count for block in blocks):
            raise UserError(f"{self.name} has main blocks 0 to {count - 1}, got {list(blocks)}")

    def features(
        self, z_t: Tensor, t: Tensor, conditioning: Conditioning, blocks: Sequence[int]
    ) -> list[Tensor]:
        self.check_blocks(blocks)
        dtype = self.transformer.dtype
        hidden: list[Tensor] = []
        tokens = self.pack(z_t.to(dtype))
        batched_forward(
            self.transformer, tokens, (1 - t).to(z_t.device), conditioning.to(dtype=dtype), hidden=hidden
        )
        return [hidden[block].permute(0, 3, 1, 2) for block in blocks]
