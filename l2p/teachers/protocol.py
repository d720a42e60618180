"""What a latent teacher offers to the rest of the house, whatever its family.

Every foreign convention (time running backwards, negated velocities, latent scaling, token packing) is
translated once, in the family's own file, so that above this line there is one convention: ``x_t = (1 - t) x_0 +
t eps``, velocity ``u = eps - x_0``, images in [-1, 1].

Legend: B batch, L caption tokens, C caption width, c latent channels, h w token grid, d = c * packing^2.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from l2p import flow, runtime
from l2p.errors import UserError
from l2p.patches import patchify, unpatchify

if TYPE_CHECKING:
    from l2p.teachers.text import TextEncoder


@dataclass
class Conditioning:
    """Encoded prompts: ``embeds`` [B, L, C], zero beyond ``lengths`` [B] (int64).

    The lengths stay on the CPU: they decide shapes, and asking a GPU for them would stop it in every step.
    """

    embeds: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Conditioning:
        lengths = self.lengths[index.cpu() if isinstance(index, Tensor) else index]
        return Conditioning(self.embeds[index][:, : int(lengths.max())], lengths)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        return Conditioning(self.embeds.to(device=device, dtype=dtype), self.lengths)

    def expand(self, batch: int) -> Conditioning:
        """One prompt for the whole batch."""
        return Conditioning(self.embeds.expand(batch, -1, -1), self.lengths.expand(batch))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        width = max(part.embeds.shape[1] for part in parts)
        embeds = [nn.functional.pad(p.embeds, (0, 0, 0, width - p.embeds.shape[1])) for p in parts]
        return Conditioning(torch.cat(embeds), torch.cat([part.lengths for part in parts]))


@dataclass(frozen=True)
class LatentGeometry:
    """``channels`` of the latent, pixels per latent cell (``compression``), cells per token side (``packing``)."""

    channels: int
    compression: int
    packing: int

    @property
    def token_dim(self) -> int:
        return self.channels * self.packing**2

    @property
    def token_pixels(self) -> int:
        return self.compression * self.packing

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape [c, H / compression, W / compression] of one picture's latent.

        Raises:
            ValueError: if a side is no positive multiple of ``token_pixels``.
        """
        if height <= 0 or width <= 0 or height % self.token_pixels or width % self.token_pixels:
            raise ValueError(
                f"height and width must be multiples of {self.token_pixels}, got {height} x {width}"
            )
        return self.channels, height // self.compression, width // self.compression


class Teacher(ABC):
    """A frozen latent text-to-image model behind one convention.

    Attributes:
        name: folder or Hub name it was loaded from.
        revision: commit on the Hub, if any.
        license: SPDX name where the folder tells it, else "unknown".
        transformer: the network behind ``velocity``.
        vae: diffusers' autoencoder; its encoder's features compare pictures.
        gives_score: whether ``velocity`` is that of a flow, and so holds the score of noisy latents. A family of
            few-step models says no: `distribution` has nothing to follow there.
    """

    gives_score = True

    name: str
    revision: str | None
    license: str
    geometry: LatentGeometry
    text_encoder: TextEncoder
    transformer: nn.Module
    vae: nn.Module
    device: torch.device

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return self.text_encoder(prompts).to(self.device)

    @abstractmethod
    def times(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """Times [n + 1] of the sampler for a picture of this size in pixels, descending and ending in 0."""

    @abstractmethod
    def velocity(
        self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float = 0.0
    ) -> Tensor:
        """Velocity ``eps - z_0`` at latents ``z_t`` [B, c, H, W] and times ``t`` [B].

        ``guidance_scale`` w steers away from the empty prompt: ``u + w (u - u_empty)``; 0 is no guidance.
        """

    def features(
        self, z_t: Tensor, t: Tensor, conditioning: Conditioning, blocks: Sequence[int]
    ) -> list[Tensor]:
        """What the network makes of latents at times ``t`` [B]: tokens [B, D, h, w] after each of these main blocks.

        Raises:
            UserError: a block that the network has not, or a family that shows none.
        """
        raise UserError(f"the teacher {self.name} shows no features of its transformer: use its encoder's")

    def with_transformer(self, transformer: nn.Module) -> Teacher:
        """This teacher with another network of the same kind behind ``velocity``; all else is shared."""
        other = copy.copy(self)
        other.transformer = transformer
        return other

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Normalised latents [B, c, H/f, W/f] (the mean of the posterior) of images [B, 3, H, W]; differentiable."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Images [B, 3, H, W], about [-1, 1] and not clamped, of normalised latents; differentiable."""

    def pack(self, z: Tensor) -> Tensor:
        """Latents [B, c, H, W] to tokens [B, h, w, d]."""
        return patchify(z, self.geometry.packing)

    def unpack(self, tokens: Tensor) -> Tensor:
        return unpatchify(tokens, self.geometry.packing)

    @torch.no_grad()
    def sample(
        self,
        eps: Tensor,
        conditioning: Conditioning,
        num_inference_steps: int,
        guidance_scale: float = 0.0,
        stop_at: float = 0.0,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Euler steps from latent noise ``eps`` [B, c, H, W] along the teacher's own schedule.

        Args:
            stop_at: end at the first time not above this one (0: run to the clean latent); what is left is
                ``z_t`` at that time, and the steps below it are never run.
            progress: called with the number of steps done.
        """
        compression = self.geometry.compression
        times = self.times(num_inference_steps, eps.shape[2] * compression, eps.shape[3] * compression)
        if stop_at > 0:
            times = times[: int((times > stop_at).sum()) + 1]
        with runtime.weights_in_autocast_dtype(self.transformer):
            return flow.euler(
                lambda z_t, t: self.velocity(z_t, t, conditioning, guidance_scale),
                eps,
                times,
                progress=progress,
            )
