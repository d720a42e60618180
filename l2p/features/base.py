"""What every frozen feature network gives: maps for losses, vectors for distances between sets of pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from l2p.features.spec import FeatureSpec, license_of

if TYPE_CHECKING:
    from l2p.teachers import Conditioning


@dataclass(frozen=True)
class Probe:
    """How a diffusion transformer is shown latents: noised by ``eps`` [B, c, h, w] to the times ``t`` [B], with captions."""

    conditioning: Conditioning
    t: Tensor
    eps: Tensor


class FeatureNetwork(ABC):
    """A frozen network; differentiable in its input. It is no module, so that no optimiser or checkpoint finds its weights.

    Args:
        spec: what it was asked for by.
        module: holds the weights; frozen here.

    Attributes:
        needs_probe: it sees noised latents, for which :meth:`maps` wants a :class:`Probe` of the batch.
    """

    needs_probe = False

    def __init__(self, spec: FeatureSpec, module: nn.Module) -> None:
        self.spec, self.module = spec, module.eval().requires_grad_(False)

    @property
    def name(self) -> str:
        return str(self.spec)

    @property
    def license(self) -> str:
        return license_of(self.spec)

    @abstractmethod
    def maps(self, images: Tensor, probe: Probe | None = None) -> list[Tensor]:
        """Feature maps [B, C, h, w], one a layer, of pictures [B, 3, H, W] in [-1, 1]."""

    @abstractmethod
    def vectors(self, images: Tensor) -> Tensor:
        """One vector [B, d] a picture, in float32 or wider: the space of Frechet and kernel distances."""

    @property
    def channels(self) -> list[int]:
        """C of each map."""
        weight = next(self.module.parameters())
        with torch.no_grad():
            return [f.shape[1] for f in self.maps(torch.zeros(1, 3, 64, 64, device=weight.device))]

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks that repeat, which are checkpointed, compiled and sharded one by one."""
        return repeated(self.module)

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute blocks in the backward pass, where the network can."""
        if hasattr(self.module, "set_grad_checkpointing"):
            self.module.set_grad_checkpointing(enabled)

    def compile(self) -> None:
        """`torch.compile` the blocks that repeat."""
        for block in self.blocks:
            block.compile()

    def to_device(self, x: Tensor) -> Tensor:
        """The input in the dtype of the weights, which come to the input's device."""
        weight = next(self.module.parameters())
        if weight.device != x.device and not isinstance(weight, DTensor):
            self.module.to(x.device)
        return x.to(weight.dtype)


def widened(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def repeated(network: nn.Module) -> list[nn.Module]:
    """Members of lists of one class among a network's modules, from the outside in."""
    found: list[nn.Module] = []
    for child in network.children():
        members = list(child) if isinstance(child, (nn.ModuleList, nn.Sequential)) else []
        alike = len(members) > 1 and len({type(member) for member in members}) == 1
        found += members if alike else repeated(child)
    return [block for block in found if any(True for _ in block.parameters())]
