"""Frozen networks whose features compare pictures: the teacher's own VAE encoder and transformer, or LPIPS.

The teacher's networks cost no download and know its world; LPIPS knows what people see, but its backbone is fetched
on first use. As distances, all have unit length over the channels, so that no layer drowns another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2p import flow
from l2p.errors import UserError
from l2p.objectives.base import Frozen

if TYPE_CHECKING:
    from l2p.teachers import Conditioning, Teacher


class _EncoderBlocks(nn.Module):
    """The first ``blocks`` down blocks of a diffusers VAE encoder; shares the encoder's weights.

    An encoder of films (Qwen-Image's) sees a picture as one frame.
    """

    def __init__(self, encoder: nn.Module, blocks: int) -> None:
        super().__init__()
        self.conv_in = encoder.conv_in
        self.down_blocks = nn.ModuleList(encoder.down_blocks[:blocks])
        self.of_films = any(weight.ndim == 5 for weight in encoder.conv_in.parameters())

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.conv_in(x[:, :, None] if self.of_films else x), []
        for block in self.down_blocks:
            x = block(x)
            maps.append(x[:, :, 0] if self.of_films else x)
        return maps


class EncoderFeatures:
    """Feature maps of the teacher's VAE encoder, one a down block: ``(images [B, 3, H, W]) -> list of [B, C, h, w]``.

    Args:
        blocks: down blocks used, from the picture on; 0 takes all.

    Raises:
        UserError: the teacher has no such encoder, or fewer blocks.
    """

    def __init__(self, teacher: Teacher, blocks: int = 0) -> None:
        encoder = getattr(getattr(teacher, "vae", None), "encoder", None)
        if not hasattr(encoder, "down_blocks"):
            raise UserError(
                f"the teacher {teacher.name} has no VAE encoder with down blocks: turn its features off"
            )
        if not 0 <= blocks <= len(encoder.down_blocks):
            raise UserError(f"feature_blocks must be 0 (all) to {len(encoder.down_blocks)}, got {blocks}")
        self._network = Frozen(_EncoderBlocks(encoder, blocks or len(encoder.down_blocks)))

    @property
    def channels(self) -> list[int]:
        """C of each map."""
        weight = next(self._network.module.parameters())
        with torch.no_grad():
            return [f.shape[1] for f in self(torch.zeros(1, 3, 64, 64, device=weight.device))]

    def __call__(self, images: Tensor) -> list[Tensor]:
        return self._network(images)


class TransformerFeatures:
    """Tokens inside the teacher's transformer: ``(z, t, captions, eps) -> list of [B, D, h, w]``, one a block.

    Latents z are noised to the times t [B], as a flow model is blind to what it was never shown. It sees what pictures
    mean where the encoder sees how they look.

    Args:
        blocks: main blocks of the transformer, counted from 0 or from the end by -1.

    Raises:
        UserError: a block that is not there, or a family that shows none.
    """

    def __init__(self, teacher: Teacher, blocks: Sequence[int]) -> None:
        teacher.check_blocks(blocks)
        self.teacher, self.blocks = teacher, tuple(blocks)

    @property
    def channels(self) -> list[int]:
        """D of each block."""
        geometry, device = self.teacher.geometry, self.teacher.device
        z = torch.zeros(
            1, *geometry.latent_shape(geometry.token_pixels, geometry.token_pixels), device=device
        )
        with torch.no_grad():
            empty = self.teacher.encode_prompts([""]).to(device)
            return [f.shape[1] for f in self(z, torch.ones(1, device=device), empty, z)]

    def __call__(self, z: Tensor, t: Tensor, conditioning: Conditioning, eps: Tensor) -> list[Tensor]:
        return self.teacher.features(flow.add_noise(z, eps.to(z), t), t, conditioning, self.blocks)


class EncoderDistance:
    """Perceptual distance [B] through :class:`EncoderFeatures`; 0 at equality, at most 4."""

    def __init__(self, features: EncoderFeatures) -> None:
        self.features = features

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = [unit(f) for f in self.features(target)]
        layers = [
            (unit(f) - g).square().sum(1).mean((1, 2)) for f, g in zip(self.features(x), wanted, strict=True)
        ]
        return torch.stack(layers).mean(0)


class LpipsDistance:
    """LPIPS (VGG-16) [B]; the sum is done here because the package's own divides by a norm that can be 0.

    Raises:
        UserError: the package is missing, or the backbone cannot be fetched.
    """

    def __init__(self) -> None:
        way_out = "set perceptual_network: encoder, which needs no download"
        try:
            import lpips
        except ImportError:
            raise UserError(
                f"perceptual_network: lpips needs the lpips package: install it, or {way_out}"
            ) from None
        try:
            self._lpips = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"the LPIPS backbone cannot be fetched ({reason}): check the network, or {way_out}"
            ) from error

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        net = self._lpips.to(x.device)
        with torch.no_grad():
            wanted = [unit(f) for f in net.net(net.scaling_layer(target.float()))]
        found = [unit(f) for f in net.net(net.scaling_layer(x.float()))]
        layers = [
            net.lins[i]((f - g).square()).mean((1, 2, 3))
            for i, (f, g) in enumerate(zip(found, wanted, strict=True))
        ]
        return torch.stack(layers).sum(0)


def shrink_factor(scale: float) -> int:
    """Pixels of a side that become one, of a share of the side such as 1/2, 1/3, 1/4."""
    return round(1 / scale)


def shrink(images: Tensor, factor: int) -> Tensor:
    """Images averaged down by an integer factor; a plain pool, since the adaptive one is not deterministic on a GPU."""
    return F.avg_pool2d(images, factor) if factor > 1 else images


def unit(features: Tensor) -> Tensor:
    """Features [B, C, h, w] in float32 with unit length over C; 0 stays 0, with a finite gradient."""
    features = features.float()
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)
