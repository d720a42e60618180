"""What a student is compared with: the teacher's pictures of the same noise, kept on disk since they cost the most.

One file a batch, named by everything that decides its content (weights, lift, steps, guidance, size, number format,
prompts, seeds), so a rerun or another checkpoint of the student finds them and a changed setting does not.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from l2p import runtime
from l2p.artifacts import digest, hash_tensors
from l2p.files import atomic_path
from l2p.images import Pictures, to_uint8
from l2p.noise import pixel_noise
from l2p.parallel import parallel_map, shares
from l2p.patches import patchify
from l2p.terminal import say

if TYPE_CHECKING:
    from l2p.recipe import TeacherConfig
    from l2p.teachers import Teacher


class TeacherPictures:
    """The teacher's pictures with many steps and with one, from pixel noise seen through the lift's basis.

    Args:
        basis: A [D, d]; the teacher starts at ``A^T eps``.
        dtype: of the arithmetic.
        folder: where the pictures are kept.
    """

    def __init__(
        self,
        teacher: Teacher,
        basis: Tensor,
        config: TeacherConfig,
        dtype: torch.dtype,
        folder: Path,
        noise_generator: str = "philox",
    ) -> None:
        self.teacher, self.basis, self.config, self.dtype, self.folder = teacher, basis, config, dtype, folder
        self.noise_generator = noise_generator
        self.key = {
            "teacher": teacher.sha256,
            "basis": hash_tensors({"basis": basis}),
            "noise_generator": noise_generator,
            "steps": config.num_inference_steps,
            "guidance": config.guidance_scale,
            "size": [config.height, config.width],
            "dtype": str(dtype),
            "device": teacher.device.type,
        }

    def get(self, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Pictures, Pictures]:
        """uint8 [B, H, W, 3] of many steps and of one, from the disk or drawn now."""
        arrays = self._arrays(prompts, seeds)
        return arrays["many"], arrays["one"]

    def latents(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """The latents z [B, c, h, w] of which the pictures of many steps were decoded, rounded to fp16."""
        return torch.from_numpy(self._arrays(prompts, seeds)["z"]).float().to(self.teacher.device)

    def _arrays(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, np.ndarray]:
        def draw() -> dict[str, np.ndarray]:
            noise = self.noise(seeds, self.config.height, self.config.width)
            z = self.sample(prompts, noise, self.config.num_inference_steps)
            one = self.draw(prompts, noise, 1)
            return {"many": self.decode(z), "one": one, "z": z.cpu().half().numpy()}

        key = {**self.key, "prompts": list(prompts), "seeds": list(seeds)}
        return remembered(self.folder, key, ("many", "one", "z"), draw)

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Tensor:
        """Pixel noise [B, 3, H, W] of seeds, that which the student is given."""
        return pixel_noise(self.noise_generator, seeds, height, width, self.basis)

    def draw(self, prompts: Sequence[str], noise: Tensor, num_steps: int) -> Pictures:
        """Pictures of pixel noise [B, 3, H, W], prompt to 8-bit."""
        return self.decode(self.sample(prompts, noise, num_steps))

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], noise: Tensor, num_steps: int) -> Tensor:
        """Latents [B, c, h, w] of pixel noise [B, 3, H, W]."""
        teacher = self.teacher
        tokens = patchify(noise.to(teacher.device), teacher.geometry.token_pixels)
        eps = teacher.unpack(tokens @ self.basis.to(tokens))
        conditioning = teacher.encode_prompts(prompts)
        config = self.config

        def draw(some: slice) -> Tensor:
            return teacher.sample(eps[some], conditioning[some], num_steps, config.guidance_scale)

        with (
            runtime.autocast(teacher.device, self.dtype),
            runtime.weights_in_autocast_dtype(teacher.transformer),
        ):
            return torch.cat(parallel_map(draw, shares(len(eps), teacher.device), teacher.device))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Pictures:
        """Latents to 8-bit pictures."""
        with runtime.autocast(self.teacher.device, self.dtype):
            return np.concatenate(self._in_parts(lambda part: to_uint8(self.teacher.decode(part)), z))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] to latents [B, c, h, w], fp32."""
        images = images.to(self.teacher.device)
        with runtime.autocast(self.teacher.device, self.dtype):
            return torch.cat(self._in_parts(lambda part: self.teacher.encode(part).float(), images))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Pictures:
        """Images [B, 3, H, W] in [-1, 1] through the teacher's encoder and decoder."""
        return self.decode(self.encode(images))

    def _in_parts(self, function: Callable[[Tensor], Any], batch: Tensor) -> list[Any]:
        parts = [batch[some] for some in shares(len(batch), self.teacher.device)]
        return parallel_map(function, parts, self.teacher.device)


def remembered(
    folder: Path, key: dict[str, Any], names: Sequence[str], draw: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays of these names from the file that the key names, or drawn now and kept there."""
    path = folder / f"{digest(key)[:24]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            path.unlink(missing_ok=True)
            say(f"{path} is made anew (its bytes are damaged)")
    arrays = draw()
    with atomic_path(path) as partial:
        np.savez_compressed(partial, **arrays)
    return arrays
