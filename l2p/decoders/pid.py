"""A pixel diffusion decoder: a pixel student that is told latents of a known noise level, and paints them larger.

The idea is PiD's (arXiv 2605.23902): decoding and super-resolution are one conditional pixel flow, and the latents may
still be noisy, so that the latent model can stop early. The network is this toolkit's: core and patch head of a grown
student, with a :class:`~l2p.decoders.adapter.LatentAdapter` between latents and core.

The way of a picture: the latents z_sigma enter the core where its teacher had them, at their own time sigma, and again
through the gates; the noisy picture x_t enters beside them, averaged over blocks of the scale. The teacher's last layer
reads a clean z_0 off the core; a small draft of it is upsampled, and the head, which sees draft, features and x_t, adds
what the draft lacks. With core and last layer from a teacher and all else at zero, an untrained decoder paints the draft.

Legend: B batch, c latent channels, f pixels a side of a latent cell, k cells a side of a token (packing), s scale,
u core tokens a side of a latent token, p = f k s / u patch side in pixels, d = c k^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2p.decoders.adapter import LatentAdapter
from l2p.errors import UserError
from l2p.patches import patchify, unpatchify
from l2p.students.cores import build_core
from l2p.students.heads import GrownHead, PatchHead
from l2p.students.heads.linear import clean
from l2p.students.student import PixelStudent
from l2p.teachers.protocol import Conditioning, LatentGeometry

SCALES = (1, 2, 4, 8)
EVERY = 2  # main layers from one gate to the next


@dataclass
class PidSpec:
    """All that is needed to build a decoder without its weights; plain values, so it travels as JSON.

    Attributes:
        scale: s, sides of the picture over sides of what the latents' own decoder paints.
        channels, compression, packing: c, f and k of the latents.
        upsample: u, for grids finer than the latents'.
        core: config of a Z-Image transformer.
        head: knobs of the detail, see :class:`l2p.students.heads.PatchHead`.
        draft: ``kind`` "decoder" with the config of an ``AutoencoderKL``, or "head" with the knobs of a patch head.
        adapter_width: W of the adapter.
        features: values of a core token that the head opens.
        max_sigma: highest noise level of latents that it was trained on; latents of level 1 are no latents.
        num_steps: steps it was last trained to paint in.
        empty_length: tokens of the caption that stands for none.
        height, width: pixels of the pictures it was trained on.
    """

    guidance_scale: ClassVar[float] = 1.0  # what `sample` asks of a student: no guidance, steps at even times
    shift: ClassVar[float] = 1.0

    scale: int
    channels: int
    compression: int
    packing: int
    core: dict[str, Any]
    head: dict[str, Any]
    draft: dict[str, Any]
    adapter_width: int = 96
    features: int = 96
    upsample: int = 1
    max_sigma: float = 0.8
    num_steps: int = 1
    empty_length: int = 1
    height: int | None = None
    width: int | None = None
    teacher: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise UserError(f"scale is {self.scale}, expected one of {', '.join(map(str, SCALES))}")
        if self.upsample < 1 or self.geometry.token_pixels % self.upsample:
            raise UserError(
                f"upsample is {self.upsample}, expected a divisor of {self.geometry.token_pixels}, the pixels of a token"
            )

    @property
    def geometry(self) -> LatentGeometry:
        return LatentGeometry(self.channels, self.compression, self.packing)

    @property
    def cell(self) -> int:
        """Pixels a side of a latent cell in the picture: f s."""
        return self.compression * self.scale

    @property
    def patch_size(self) -> int:
        return self.geometry.token_pixels * self.scale // self.upsample


@dataclass
class LatentConditioning(Conditioning):
    """Captions and latents: ``latents`` z_sigma [B, c, h, w], normalised as the teacher has them, and ``sigma`` [B].

    ``z_sigma = (1 - sigma) z_0 + sigma eps``; at sigma = 1 nothing is known of the picture but its caption.

    ``window`` [B, 2] is for training on parts of large pictures: row and column of the core token where the noisy pixels
    begin, whose size is the window's. Core and draft see the whole, as a decoder's norms tell other colours of a part.
    """

    latents: Tensor | None = None
    sigma: Tensor | None = None
    window: Tensor | None = None

    @classmethod
    def of(cls, captions: Conditioning, latents: Tensor, sigma: Tensor | float) -> LatentConditioning:
        """Latents beside captions of the same number, or of one that serves all."""
        captions = captions if len(captions) == len(latents) else captions.expand(len(latents))
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=latents.device).expand(len(latents))
        return cls(*vars(captions).values(), latents=latents, sigma=levels)

    @property
    def captions(self) -> Conditioning:
        return Conditioning(self.embeds, self.lengths, self.pooled)

    def __getitem__(self, index: Any) -> LatentConditioning:
        window = None if self.window is None else self.window[index]
        captions = vars(super().__getitem__(index)).values()
        return LatentConditioning(*captions, self.latents[index], self.sigma[index], window)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> LatentConditioning:
        """Latents and their level keep their fp32: the arithmetic of noise needs its digits."""
        moved = super().to(device, dtype)
        return LatentConditioning(
            *vars(moved).values(), self.latents.to(device), self.sigma.to(device), self.window
        )


class PidCoreOutput(NamedTuple):
    """What the core makes of latents and noisy picture.

    Attributes:
        inputs: of the head: features [B, h, w, n], time embedding, x_t and t.
        z_0: the guessed clean latents, packed [B, h', w', d].
        draft: a picture [B, 3, H / s, W / s] of them.
    """

    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    z_0: Tensor
    draft: Tensor


class PidStudent(PixelStudent):
    """Noisy pixels, their time, and a :class:`LatentConditioning` in; clean pixels out.

    It is called, sampled and trained as any :class:`PixelStudent`.
    """

    def __init__(self, spec: PidSpec) -> None:
        nn.Module.__init__(self)
        self.spec = spec
        geometry, coarse = spec.geometry, spec.patch_size // spec.scale
        self.core = build_core(spec.core, coarse, interval=True)
        dim, d = self.core.dim, geometry.token_dim
        self.latent_in = nn.Linear(d, dim)
        layers = len(self.core.layers)
        self.adapter = LatentAdapter(d, spec.adapter_width, dim, -(-layers // EVERY) + 1)
        self.final = self.core.new_final(d)
        self.narrow = nn.Linear(dim, spec.features)
        self.head = GrownHead(
            None, spec.scale, spec.features, self.core.time_dim, spec.patch_size, d, **spec.head
        )
        self.draft = build_draft(spec.draft, geometry)
        self.register_buffer("no_caption", torch.zeros(1, spec.empty_length, spec.core["cap_feat_dim"]))
        self.draft.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.no_caption.device

    @property
    def empty(self) -> Conditioning:
        """The caption of pictures without one."""
        return Conditioning(self.no_caption, torch.tensor([self.spec.empty_length], device="cpu"))

    def forward_features(
        self, x_t: Tensor, t: Tensor, conditioning: LatentConditioning, r: Tensor | None = None
    ) -> PidCoreOutput:
        """The core's part of :meth:`forward`.

        Args:
            x_t: [B, 3, h f s, w f s] for latents [B, c, h, w], h and w multiples of k; or smaller, of whole patches, where
                there is a window.
            t: [B].
            r: not looked at.

        Raises:
            UserError: latents of other channels, or a picture that is not theirs.
        """
        spec, sigma, z = self.spec, conditioning.sigma.float(), conditioning.latents.float()
        window = None if conditioning.window is None else conditioning.window.tolist()
        self.check(z, None if window else x_t)
        t = t.to(x_t.device, torch.float32)
        coarse = F.avg_pool2d(x_t.float(), spec.scale) * spec.scale  # white noise stays white
        cell = spec.patch_size // spec.scale
        if window:
            size = [side * spec.compression for side in z.shape[2:]]
            coarse = torch.stack(
                [
                    _placed(x, *(cell * at for at in place), *size)
                    for x, place in zip(coarse, window, strict=True)
                ]
            )
        packed = patchify(z, spec.packing)
        grid = packed.repeat_interleave(spec.upsample, 1).repeat_interleave(spec.upsample, 2)
        lq = self.adapter(grid)
        x = self.core.embed(patchify(coarse, cell), sigma)
        x = x + self.latent_in(grid.to(self.latent_in.weight.dtype))

        def inject(number: int, tokens: Tensor) -> Tensor:
            return tokens if number % EVERY else self.adapter.gates[number // EVERY](tokens, lq, sigma)

        features, c = self.core.run(x, sigma, conditioning.captions, t, inject)
        z_0 = clean(packed, self._read(features, c), sigma, None)
        told = self.adapter.gates[-1](features.flatten(1, 2), lq, sigma)
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and any(p.requires_grad for p in self.draft.parameters())
        ):  # z_0 has an objective of its own
            draft = self.draft(unpatchify(z_0.detach(), spec.packing))
        features = self.narrow(told).unflatten(1, features.shape[1:3])
        if window:
            rows, columns = (side // spec.patch_size for side in x_t.shape[2:])
            features = torch.stack(
                [f[r : r + rows, c_ : c_ + columns] for f, (r, c_) in zip(features, window, strict=True)]
            )
            parts = [
                d[:, r * cell : (r + rows) * cell, c_ * cell : (c_ + columns) * cell]
                for d, (r, c_) in zip(draft, window, strict=True)
            ]
            draft = torch.stack(parts)
        return PidCoreOutput((features, c, x_t, t), z_0, draft.float())

    def forward_head(self, core_output: PidCoreOutput, draft: Tensor | None = None) -> Tensor:
        """The head's part: x_0 [B, 3, H, W]."""
        return self.head(*core_output.inputs, draft=core_output.draft if draft is None else draft)

    def latents(self, core_output: PidCoreOutput) -> Tensor:
        return core_output.z_0

    def check(self, z: Tensor, x_t: Tensor | None = None) -> None:
        """Raises UserError for latents [B, c, h, w] that are not this decoder's, or a picture that is not theirs."""
        spec = self.spec
        if z.ndim != 4 or z.shape[1] != spec.channels:
            raise UserError(
                f"latents of shape {list(z.shape)}, expected [B, {spec.channels}, h, w]: this decoder is for another VAE"
            )
        if z.shape[2] % spec.packing or z.shape[3] % spec.packing or not z.shape[2] * z.shape[3]:
            raise UserError(
                f"latents of {z.shape[2]} x {z.shape[3]} cells, expected multiples of {spec.packing}"
            )
        wanted = (z.shape[2] * spec.cell, z.shape[3] * spec.cell)
        if x_t is not None and tuple(x_t.shape[2:]) != wanted:
            raise UserError(
                f"noise of {x_t.shape[2]} x {x_t.shape[3]} pixels for latents of {wanted[0]} x {wanted[1]}"
            )

    def _read(self, features: Tensor, c: Tensor) -> Tensor:
        """What the teacher's last layer writes, [B, h', w', d], on the latents' own grid."""
        out = self.final(features.flatten(1, 2), c=c).unflatten(1, features.shape[1:3]).float()
        if self.spec.upsample == 1:
            return out
        return F.avg_pool2d(out.permute(0, 3, 1, 2), self.spec.upsample).permute(0, 2, 3, 1)


def _placed(x: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """A part [3, rows, columns] of a picture [3, height, width], zero elsewhere."""
    return F.pad(x, (left, width - left - x.shape[2], top, height - top - x.shape[1]))


class DecoderDraft(nn.Module):
    """The decoder half of a diffusers ``AutoencoderKL``: normalised latents [B, c, h, w] to pictures [B, 3, f h, f w]."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.vae = AutoencoderKL(**config)
        self.vae.encoder = self.vae.quant_conv = None

    def forward(self, z: Tensor) -> Tensor:
        config = self.vae.config
        raw = z / config.scaling_factor + (config.get("shift_factor") or 0.0)
        weight = next(self.vae.decoder.parameters())
        return self.vae.decode(raw.to(weight.dtype), return_dict=False)[0]


class HeadDraft(nn.Module):
    """A patch head that decodes without a core (`l2p train-head`): cheaper than a decoder, and less exact."""

    def __init__(self, geometry: LatentGeometry, **knobs: int) -> None:
        super().__init__()
        self.packing = geometry.packing
        self.head = PatchHead(1, 1, geometry.token_pixels, geometry.token_dim, **knobs)

    def forward(self, z: Tensor) -> Tensor:
        return self.head.decode(patchify(z, self.packing))


def build_draft(config: Mapping[str, Any], geometry: LatentGeometry) -> nn.Module:
    """What paints the small draft: latents [B, c, h, w] to pictures [B, 3, f h, f w]. Raises UserError for another kind."""
    knobs = dict(config)
    kind = knobs.pop("kind", None)
    if kind == "decoder":
        return DecoderDraft(knobs)
    if kind == "head":
        return HeadDraft(geometry, **knobs)
    raise UserError(f"no draft {kind!r}: expected decoder or head")
