"""The teacher's own networks as features: no download, and they know its world."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from l2p import flow
from l2p.errors import UserError
from l2p.features.base import FeatureNetwork, Probe, widened
from l2p.features.spec import FeatureSpec

if TYPE_CHECKING:
    from l2p.teachers import Teacher

PROBE_TIME = 0.2  # of pictures that come without captions: little noise shows detail and layout


class _EncoderBlocks(nn.Module):
    """The first ``count`` down blocks of a diffusers VAE encoder; shares the encoder's weights.

    An encoder of films (Qwen-Image's) sees a picture as one frame.
    """

    def __init__(self, encoder: nn.Module, count: int) -> None:
        super().__init__()
        self.conv_in = encoder.conv_in
        self.down_blocks = nn.ModuleList(encoder.down_blocks[:count])
        self.of_films = any(weight.ndim == 5 for weight in encoder.conv_in.parameters())

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.conv_in(x[:, :, None] if self.of_films else x), []
        for block in self.down_blocks:
            x = block(x)
            maps.append(x[:, :, 0] if self.of_films else x)
        return maps


class EncoderFeatures(FeatureNetwork):
    """Feature maps of the teacher's VAE encoder, one a down block; the layers of the spec choose some.

    Vectors are mean and deviation over the cells of the deepest map: [B, 2 C].

    Raises:
        UserError: the teacher has no such encoder, or no such block.
    """

    def __init__(self, spec: FeatureSpec, teacher: Teacher) -> None:
        encoder = getattr(getattr(teacher, "vae", None), "encoder", None)
        if not hasattr(encoder, "down_blocks"):
            raise UserError(
                f"the teacher {teacher.name} has no VAE encoder with down blocks: choose other features"
            )
        count = len(encoder.down_blocks)
        self._chosen = chosen(spec, count, f"the encoder of {teacher.name}") or list(range(count))
        super().__init__(spec, _EncoderBlocks(encoder, max(self._chosen) + 1))

    def maps(self, images: Tensor, probe: Probe | None = None) -> list[Tensor]:
        found = self.module(self.to_device(images))
        return [found[index] for index in self._chosen]

    def vectors(self, images: Tensor) -> Tensor:
        deepest = widened(self.maps(images)[-1]).flatten(2)
        return torch.cat([deepest.mean(2), deepest.std(2)], dim=1)


class TransformerFeatures(FeatureNetwork):
    """Tokens inside the teacher's transformer, [B, D, h, w] after each main block of the spec's layers (the last one).

    Pictures go through the teacher's VAE, and latents are noised, as a flow model is blind to what it was never shown. It
    sees what pictures mean where the encoder sees how they look.
    """

    needs_probe = True

    def __init__(self, spec: FeatureSpec, teacher: Teacher) -> None:
        self.teacher, self._blocks = teacher, spec.layers or (-1,)
        teacher.check_blocks(self._blocks)
        super().__init__(spec, teacher.transformer)

    def of_latents(self, z: Tensor, probe: Probe) -> list[Tensor]:
        """Maps of latents z [B, c, h, w]."""
        z_t = flow.add_noise(z, probe.eps.to(z), probe.t)
        return self.teacher.features(z_t, probe.t, probe.conditioning, self._blocks)

    def maps(self, images: Tensor, probe: Probe | None = None) -> list[Tensor]:
        z = self.teacher.encode(images)
        return self.of_latents(z, self._plain(z) if probe is None else probe)

    def vectors(self, images: Tensor) -> Tensor:
        """Mean over the tokens of each block, with an empty caption and one noise for all pictures."""
        return torch.cat([widened(f).mean((2, 3)) for f in self.maps(images)], dim=1)

    def _plain(self, z: Tensor) -> Probe:
        eps = flow.noise([0], *z.shape[1:]).to(z).expand(len(z), *z.shape[1:])
        t = torch.full((len(z),), PROBE_TIME, device=z.device)
        return Probe(self.teacher.encode_prompts([""] * len(z)).to(z.device), t, eps)

    @property
    def channels(self) -> list[int]:
        """D of each block. Raises: UserError for a block that is not there, or a family that shows none."""
        geometry, device = self.teacher.geometry, self.teacher.device
        shape = geometry.latent_shape(geometry.token_pixels, geometry.token_pixels)
        z = torch.zeros(1, *shape, device=device)
        with torch.no_grad():
            empty = self.teacher.encode_prompts([""]).to(device)
            return [f.shape[1] for f in self.of_latents(z, Probe(empty, torch.ones(1, device=device), z))]


def chosen(spec: FeatureSpec, count: int, owner: str) -> list[int]:
    """The spec's layers as indices of `count` layers, ascending; [] where it names none. Raises: UserError."""
    for layer in spec.layers or ():
        if not -count <= layer < count:
            raise UserError(f"{spec}: {owner} has no layer {layer}, expected {-count} to {count - 1}")
    return sorted({layer % count for layer in spec.layers or ()})
