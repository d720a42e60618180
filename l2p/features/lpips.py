"""VGG-16 with LPIPS' calibrated layers (Zhang et al., arXiv 1801.03924)."""

from __future__ import annotations

import torch
from torch import Tensor

from l2p.errors import UserError
from l2p.features.base import FeatureNetwork, Probe, widened
from l2p.features.spec import RANDOM, FeatureSpec


class LpipsFeatures(FeatureNetwork):
    """The five maps that LPIPS compares, and its weights of their channels, ``lins``.

    Vectors are the maps' means over positions, joined.

    Raises:
        UserError: the package is missing, or the backbone cannot be had.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        try:
            import lpips
        except ImportError:
            raise UserError(
                "lpips needs the lpips package: install it, or choose encoder, which needs no download"
            ) from None
        try:
            network = lpips.LPIPS(net="vgg", pnet_rand=bool(spec.file), verbose=False)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"the LPIPS backbone cannot be fetched ({reason}): fetch vgg16-397923af.pth into torch's cache, name "
                "torchvision's VGG-16 as lpips=FILE.safetensors, or choose encoder, which needs no download"
            ) from error
        if spec.file and spec.file != RANDOM:
            _read(network.net, spec.file)
        super().__init__(spec, network)

    def maps(self, images: Tensor, probe: Probe | None = None) -> list[Tensor]:
        x = self.to_device(images)
        return list(self.module.net(self.module.scaling_layer(x)))

    def vectors(self, images: Tensor) -> Tensor:
        return torch.cat([widened(f).mean((2, 3)) for f in self.maps(images)], dim=1)


def _read(slices: torch.nn.Module, file: str) -> None:
    """Load torchvision's ``features.N`` weights into the backbone; the classifier's, if there, are not needed."""
    from l2p.features.timm_models import read_safetensors

    state = read_safetensors(file)
    wanted = {name: f"features.{name.split('.', 1)[1]}" for name in slices.state_dict()}
    missing = [source for source in wanted.values() if source not in state]
    if missing:
        raise UserError(f"{file} is no VGG-16 of torchvision: {missing[0]} is missing")
    try:
        slices.load_state_dict({name: state[source] for name, source in wanted.items()}, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{file} is no VGG-16 of torchvision: {str(error).splitlines()[-1].strip()}"
        ) from None
