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
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from l2p import flow, runtime
from l2p.artifacts import hash_pipeline, hash_tensors
from l2p.errors import UserError
from l2p.patches import patchify, unpatchify
from l2p.teachers.schedules import solver_of

if TYPE_CHECKING:
    from l2p.teachers.text import PromptEncoder


@dataclass
class Conditioning:
    """Encoded prompts: ``embeds`` [B, L, C], zero beyond ``lengths`` [B] (int64).

    The lengths stay on the CPU: they decide shapes, and asking a GPU for them would stop it in every step.
    ``pooled`` [B, P] is one vector a prompt, for families that read one (FLUX.1, SD3, SDXL). Where ``device_lengths`` [B] are
    given, on the features' device, they are the prompts' own and ``lengths`` the shapes that these are padded to: so one CUDA
    graph serves prompts of several lengths (Z-Image alone reads them).
    """

    embeds: Tensor
    lengths: Tensor
    pooled: Tensor | None = None
    device_lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Conditioning:
        index_of_lengths = index.cpu() if isinstance(index, Tensor) else index
        lengths = self.lengths[index_of_lengths]
        pooled = None if self.pooled is None else self.pooled[index]
        return Conditioning(self.embeds[index][:, : int(lengths.max())], lengths, pooled)

    @property
    def padded(self) -> bool:
        """Whether any prompt ends before ``embeds`` does."""
        return int(self.lengths.min()) < self.embeds.shape[1]

    @property
    def mask(self) -> Tensor:
        """[B, L], True where a token is the prompt's; on the features' device."""
        device = self.embeds.device
        return torch.arange(self.embeds.shape[1], device=device) < self.lengths.to(device)[:, None]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        pooled = None if self.pooled is None else self.pooled.to(device=device, dtype=dtype)
        embeds = self.embeds.to(device=device, dtype=dtype)
        return Conditioning(embeds, self.lengths, pooled, self.device_lengths)

    def expand(self, batch: int) -> Conditioning:
        """One prompt for the whole batch."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return Conditioning(self.embeds.expand(batch, -1, -1), self.lengths.expand(batch), pooled)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        width = max(part.embeds.shape[1] for part in parts)
        embeds = [nn.functional.pad(p.embeds, (0, 0, 0, width - p.embeds.shape[1])) for p in parts]
        pooled = None if parts[0].pooled is None else torch.cat([part.pooled for part in parts])
        return Conditioning(torch.cat(embeds), torch.cat([part.lengths for part in parts]), pooled)


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
            UserError: if a side is no positive multiple of ``token_pixels``.
        """
        if height <= 0 or width <= 0 or height % self.token_pixels or width % self.token_pixels:
            raise UserError(
                f"height and width must be multiples of {self.token_pixels}, got {height} x {width}"
            )
        return self.channels, height // self.compression, width // self.compression


@dataclass(frozen=True)
class Published:
    """A checkpoint of a family as it lies on the Hub.

    Attributes:
        parameters: of the denoiser alone (transformer or U-Net), in billions.
        license: as its model card names it; read the card before publishing what was distilled from it.
        channels: of the latent.
        compression: pixels a side of a latent cell.
        packing: latent cells a side of a token.
        variant: what sets it apart within its family: "schnell", "distilled".
    """

    name: str
    parameters: float
    license: str
    channels: int = 16
    compression: int = 8
    packing: int = 2
    variant: str = ""


class Teacher(ABC):
    """A frozen latent text-to-image model behind one convention; a family fills in what is its own.

    Attributes:
        name: folder or Hub name it was loaded from.
        revision: commit on the Hub, if any.
        license: SPDX name where the folder tells it, else "unknown".
        folder: where it was loaded from; None for one that was built in memory.
        transformer: the network behind ``velocity`` (a U-Net in two families).
        vae: diffusers' autoencoder; its encoder's features compare pictures.
        gives_score: whether ``velocity`` is that of a flow, and so holds the score of noisy latents. A family of
            few-step models says no: `distribution` has nothing to follow there.
    """

    gives_score = True

    pipeline_class: ClassVar[str]
    published: ClassVar[tuple[Published, ...]]
    denoiser_class: ClassVar[str]  # diffusers' class of ``transformer``
    scheduler: Any = None  # diffusers' own; it knows the times, and which solver walks them
    folder: Path | None = None

    def __init__(self, pipeline, name: str, revision: str | None = None, license: str = "unknown") -> None:
        self.name, self.revision, self.license = name, revision, license
        denoiser = pipeline.components.get("transformer") or pipeline.components["unet"]
        self.transformer = denoiser.eval().requires_grad_(False)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        for layer in self.vae.modules():
            if isinstance(
                layer, nn.Conv2d
            ):  # three quarters of the time on a CPU, and what tensor cores want
                layer.to(memory_format=torch.channels_last)
        self.scheduler = pipeline.scheduler
        self.text_encoder = self.new_text_encoder(pipeline)
        self.device = self.transformer.device
        self.geometry = self.read_geometry()
        self._empty: Conditioning | None = None

    @property
    def sha256(self) -> str:
        """Hash of all that shapes what this teacher generates: the folder's files, or the weights in memory."""
        if self.folder is not None:
            return hash_pipeline(self.folder)
        parts = {"transformer": self.transformer, "vae": self.vae}
        return hash_tensors(
            {f"{n}.{k}": v for n, part in parts.items() for k, v in part.state_dict().items()}
        )

    @classmethod
    def new_text_encoder(cls, pipeline) -> PromptEncoder:
        """What reads prompts: by default the pipeline's own ``encode_prompt``."""
        from l2p.teachers.text import PipelineEncoder

        return PipelineEncoder(pipeline, cls.read_prompts)

    @staticmethod
    def read_prompts(
        pipeline, prompts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features [B, L, C], mask [B, L] (None: every token counts) and pooled vector [B, P] (or None) of prompts.

        ``empty`` asks for what classifier-free guidance steers away from.
        """
        raise NotImplementedError

    def read_geometry(self) -> LatentGeometry:
        """By default: tokens of ``patch_size`` cells of an ``AutoencoderKL``."""
        config = self.transformer.config
        return LatentGeometry(config.in_channels, self.vae_compression, config.get("patch_size", 1))

    @property
    def vae_compression(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def tokens(self, height: int, width: int) -> int:
        """Image tokens of a picture of this size in pixels. Raises ValueError as ``latent_shape``."""
        self.geometry.latent_shape(height, width)
        return (height // self.geometry.token_pixels) * (width // self.geometry.token_pixels)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return self.text_encoder(prompts).to(self.device)

    @property
    def empty(self) -> Conditioning:
        """What classifier-free guidance steers away from, for one picture."""
        if self._empty is None:
            self._empty = self.text_encoder.empty().to(self.device)
        return self._empty

    @property
    def guidance_kind(self) -> Literal["classifier-free", "input", "none"]:
        """How ``guidance_scale`` acts: two passes, an input of the network, or (step-distilled models) not at all."""
        return "classifier-free"

    @property
    def core_options(self) -> dict[str, Any]:
        """What a student's core has to know besides the transformer's own config."""
        return {}

    def guide(self, positive: Tensor, negative: Tensor, guidance_scale: float) -> Tensor:
        """Velocities with and without the prompt [B, c, H, W] to the guided one."""
        return negative + guidance_scale * (positive - negative)

    guidance_floor: ClassVar[float] = 1.0  # the scale that is no guidance

    def velocity(
        self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float = 0.0
    ) -> Tensor:
        """Velocity ``eps - z_0`` at latents ``z_t`` [B, c, H, W] and times ``t`` [B].

        ``guidance_scale`` is the number that the family's pipeline takes and its model card recommends; 0 is no
        guidance in every family. Classifier-free: ``u_empty + w (u - u_empty)`` for w > 1; Z-Image's pipeline counts
        from 0, ``u + w (u - u_empty)``.
        """
        if self.guidance_kind == "classifier-free" and guidance_scale > self.guidance_floor:
            both = Conditioning.cat([conditioning, self.empty.expand(len(z_t))])
            positive, negative = self._velocity(z_t.repeat(2, 1, 1, 1), t.repeat(2), both, 0.0).chunk(2)
            return self.guide(positive, negative, guidance_scale)
        return self._velocity(z_t, t, conditioning, guidance_scale)

    def _velocity(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """One pass of the network; ``guidance_scale`` matters only where it is an input."""
        raise NotImplementedError

    def check_blocks(self, blocks: Sequence[int]) -> None:
        """Raises: UserError for main blocks that :meth:`features` cannot show, or a family that shows none."""
        raise UserError(f"the teacher {self.name} shows no features of its transformer: use its encoder's")

    def features(
        self, z_t: Tensor, t: Tensor, conditioning: Conditioning, blocks: Sequence[int]
    ) -> list[Tensor]:
        """What the network makes of latents at times ``t`` [B]: tokens [B, D, h, w] after each of these main blocks.

        Raises:
            UserError: a block that the network has not, or a family that shows none.
        """
        self.check_blocks(blocks)
        raise NotImplementedError

    def with_transformer(self, transformer: nn.Module) -> Teacher:
        """This teacher with another network of the same kind behind ``velocity``; all else is shared."""
        other = copy.copy(self)
        other.transformer, other.folder = transformer, None
        return other

    @abstractmethod
    def times(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """Times [n + 1] of the sampler for a picture of this size in pixels, descending and ending in 0."""

    def start(self, eps: Tensor, t: Tensor) -> Tensor:
        """Latents at the first time ``t`` for white noise ``eps``; a schedule that ends below 1 scales it."""
        return eps

    @property
    def solver(self) -> Callable[..., Tensor]:
        """What takes the scheduler's steps, see :mod:`l2p.flow`."""
        return flow.euler if self.scheduler is None else solver_of(self.scheduler)

    def encode(self, images: Tensor) -> Tensor:
        """Normalised latents [B, c, H/f, W/f] (the mean of the posterior) of images [B, 3, H, W]; differentiable."""
        raw = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mean
        config = self.vae.config
        return ((raw - (config.get("shift_factor") or 0.0)) * config.scaling_factor).to(images.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Images [B, 3, H, W], about [-1, 1] and not clamped, of normalised latents; differentiable."""
        config = self.vae.config
        raw = z / config.scaling_factor + (config.get("shift_factor") or 0.0)
        return self.vae.decode(raw.to(self.vae.dtype), return_dict=False)[0].to(z.dtype)

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
        solver: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Steps from latent noise ``eps`` [B, c, H, W] along the teacher's own schedule, with its own solver.

        Args:
            stop_at: end at the first time not above this one (0: run to the clean latent); what is left is
                ``z_t`` at that time, and the steps below it are never run.
            progress: called with the number of steps done.
            solver: another one of :mod:`l2p.flow` in place of the teacher's own.
        """
        compression = self.geometry.compression
        times = self.times(num_inference_steps, eps.shape[2] * compression, eps.shape[3] * compression)
        if stop_at > 0:
            times = times[: int((times > stop_at).sum()) + 1]
        with runtime.weights_in_autocast_dtype(self.transformer):
            return (solver or self.solver)(
                lambda z_t, t: self.velocity(z_t, t, conditioning, guidance_scale),
                self.start(eps, times[0]),
                times,
                progress=progress,
            )
