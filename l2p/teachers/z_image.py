"""Z-Image (Tongyi-MAI/Z-Image, Z-Image-Turbo, and the bundled landscapes teacher) behind the teacher protocol.

Border with diffusers' ``ZImagePipeline``: its transformer takes ``1 - t`` and returns ``-u``; its latents are
``(raw - shift_factor) * scaling_factor``; its schedule is the scheduler's own, shifted by the picture's size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from l2p.errors import UserError
from l2p.teachers.protocol import Conditioning, LatentGeometry, Teacher
from l2p.teachers.text import TextEncoder
from l2p.teachers.z_image_forward import batched_forward


class ZImageTeacher(Teacher):
    """Wraps the modules of a loaded ``ZImagePipeline``; frozen, in evaluation mode."""

    pipeline_class = "ZImagePipeline"

    def __init__(self, pipeline, name: str, revision: str | None = None, license: str = "unknown") -> None:
        self.name, self.revision, self.license = name, revision, license
        self.transformer = pipeline.transformer.eval().requires_grad_(False)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        self.scheduler = pipeline.scheduler
        self.text_encoder = TextEncoder(pipeline.tokenizer, pipeline.text_encoder)
        self.device = self.transformer.device
        self.geometry = LatentGeometry(
            channels=self.transformer.config.in_channels,
            compression=2 ** (len(self.vae.config.block_out_channels) - 1),
            packing=self.transformer.config.all_patch_size[0],
        )
        self._empty: Conditioning | None = None

    def times(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas

        self.geometry.latent_shape(height, width)
        tokens = (height // self.geometry.token_pixels) * (width // self.geometry.token_pixels)
        config = self.scheduler.config
        mu = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        self.scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(num_inference_steps), mu=mu)
        return self.scheduler.sigmas.clone().float()

    def velocity(
        self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float = 0.0
    ) -> Tensor:
        if guidance_scale:
            if self._empty is None:
                self._empty = self.encode_prompts([""])
            both = Conditioning.cat([conditioning, self._empty.expand(len(z_t))])
            positive, negative = self._velocity(z_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
            return positive + guidance_scale * (positive - negative)
        return self._velocity(z_t, t, conditioning)

    def _velocity(self, z_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.transformer.dtype
        tokens = self.pack(z_t.to(dtype))
        features, c = batched_forward(
            self.transformer, tokens, (1 - t).to(z_t.device), conditioning.to(dtype=dtype)
        )
        final = next(iter(self.transformer.all_final_layer.values()))
        grid = features.shape[1:3]
        return -self.unpack(final(features.flatten(1, 2), c=c).unflatten(1, grid)).to(z_t.dtype)

    def features(
        self, z_t: Tensor, t: Tensor, conditioning: Conditioning, blocks: Sequence[int]
    ) -> list[Tensor]:
        count, dtype = len(self.transformer.layers), self.transformer.dtype
        if not all(-count <= block < count for block in blocks):
            raise UserError(f"{self.name} has main blocks 0 to {count - 1}, got {list(blocks)}")
        hidden: list[Tensor] = []
        tokens = self.pack(z_t.to(dtype))
        batched_forward(
            self.transformer, tokens, (1 - t).to(z_t.device), conditioning.to(dtype=dtype), hidden=hidden
        )
        return [hidden[block].permute(0, 3, 1, 2) for block in blocks]

    def encode(self, images: Tensor) -> Tensor:
        raw = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mean
        return ((raw - self.vae.config.shift_factor) * self.vae.config.scaling_factor).to(images.dtype)

    def decode(self, z: Tensor) -> Tensor:
        raw = z / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return self.vae.decode(raw.to(self.vae.dtype), return_dict=False)[0].to(z.dtype)
