"""PiD's published decoders (github nv-tlabs/PiD, ``checkpoint_registry.py`` and the configs beside it): variants, and one
that decodes.

Latents come in this toolkit's convention: the teacher's normalised ones, ``z = (1 - sigma) z_0 + sigma eps``. The weights
are non-commercial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from l2p import flow
from l2p.checksums import check_file
from l2p.errors import UserError
from l2p.files import read_json
from l2p.published.pid_network import PiDNet, PiDSizes
from l2p.students import weights
from l2p.teachers.protocol import LatentGeometry

KIND, FORMAT_VERSION, CONFIG = "pid-published", 1, "config.json"
REPO, FILE = "nvidia/PiD", "model_ema_bf16.pth"
PREFIX = "net."  # of every name in the published files
PAPER = "https://arxiv.org/abs/2605.23902"
LICENSE = "NVIDIA License (NSCLv1), non-commercial"
NOTICE = "these weights may be used for research and evaluation alone, not commercially (NVIDIA License, section 3.3)"
TIMES = (0.999, 0.866, 0.634, 0.342, 0.0)  # of the four steps of the distilled network
PURE = 1.0  # where its single step starts
NOISINGS = ("flow", "variance-preserving")
TRAINED_SIGMA = 0.8  # the most noise in a latent that it was trained with


@dataclass(frozen=True)
class PiDVariant:
    """One published file.

    Attributes:
        folder: within the repository; the file in it is FILE.
        family: of the latents, as the published code calls it.
        noising: how latents were noised in training, "flow", or "variance-preserving" for SDXL.
    """

    folder: str
    family: str
    noising: str
    sizes: PiDSizes

    @property
    def file(self) -> str:
        return f"checkpoints/{self.folder}/{FILE}"


LATENTS = {
    "flux": {"latent_channels": 16, "latent_compression": 8},  # Z-Image's as well
    "flux2": {"latent_channels": 128, "latent_compression": 16},  # packed 2 x 2, channels outermost
    "sd3": {"latent_channels": 16, "latent_compression": 8},
    "sdxl": {"latent_channels": 4, "latent_compression": 8},
    "qwenimage": {"latent_channels": 16, "latent_compression": 8},
}
TEACHERS = {  # whose latents they are
    "flux": "black-forest-labs/FLUX.1-dev",
    "flux2": "black-forest-labs/FLUX.2-dev",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "qwenimage": "Qwen/Qwen-Image",
}
V1_5: dict[str, Any] = {
    "rope_reference": 2048,
    "latent_width": 1024,
    "padding": "replicate",
    "gate": "token",
    "pixel_gate": True,
}


def _variants() -> dict[str, PiDVariant]:
    released = {
        ("2k", ""): ("flux", "flux2", "sd3"),
        ("2kto4k", ""): ("flux", "flux2", "sd3", "sdxl", "qwenimage"),
        ("2kto4k", "v1pt5_"): ("flux", "flux2", "qwenimage"),
    }
    found = {}
    for (resolution, version), families in released.items():
        for family in families:
            changes = dict(LATENTS[family], **(V1_5 if version else {}))
            if version and family == "flux2":
                changes["unpacking"] = 2
            name = f"pid-{family}-{resolution}" + ("-v1.5" if version else "")
            noising = "variance-preserving" if family == "sdxl" else "flow"
            folder = f"PiD_{version}res{resolution}_sr4x_official_{family}_distill_4step"
            found[name] = PiDVariant(folder, family, noising, PiDSizes(**changes))
    return found


PID_VARIANTS = _variants()


def pid_names(variant: PiDVariant) -> dict[str, Tensor]:
    """Every name of the published file without PREFIX, and a tensor of its shape on the meta device."""
    with torch.device("meta"):
        return PiDNet(variant.sizes).state_dict()


@dataclass(frozen=True)
class PublishedSpec:
    """What `l2p decode` asks of a decoder before it decodes: sides, noise, and latents as this toolkit's teachers give them."""

    scale: int
    max_sigma: float
    geometry: LatentGeometry
    teacher: dict[str, Any]


@dataclass
class PublishedPiD:
    """A published decoder, ready to decode.

    Attributes:
        variant: its name.
        noising, latents: see :class:`PiDVariant`; ``latents`` is its family.
        source: where the weights come from, with their licence.
    """

    net: PiDNet
    variant: str
    noising: str = "flow"
    latents: str = "flux"
    times: tuple[float, ...] = TIMES
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.net.y_pos_embedding.device

    @property
    def spec(self) -> PublishedSpec:
        sizes = self.net.sizes
        fold = sizes.latent_compression // 8
        geometry = LatentGeometry(sizes.latent_channels // fold**2, 8, 1 if sizes.latent_channels == 4 else 2)
        return PublishedSpec(sizes.scale, TRAINED_SIGMA, geometry, {"name": TEACHERS.get(self.latents)})

    @property
    def factor(self) -> int:
        """Pixels a side of the picture for a cell of the latent."""
        return self.net.sizes.latent_compression * self.net.sizes.scale

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        sigma: float | Tensor | Sequence[float] = 0.0,
        prompt_embeds: Tensor | None = None,
        seed: int = 0,
        num_inference_steps: int = 4,
    ) -> Tensor:
        """Pictures float32 [B, 3, H, W] in [-1, 1] of latents; sides are ``factor`` times those of the latents it reads.

        Args:
            latents: [B, c, h, w], the teacher's normalised ones; FLUX.2's with 32 channels, or packed to 128.
            sigma: noise in them in [0, 1], one number or one a picture; trained up to TRAINED_SIGMA.
            prompt_embeds: [B or 1, L, text_width] of :class:`l2p.published.pid_text.CaptionReader`. None gives the
                network no caption at all, which it never met in training: an empty caption's features are closer.
            seed: of the first picture's noise, the others get the next ones.
            num_inference_steps: 1 to 4.

        Raises:
            UserError: for anything out of these ranges.
        """
        sizes, batch, loose = self.net.sizes, len(latents), self.spec.geometry
        if latents.ndim == 4 and latents.shape[1] == loose.channels != sizes.latent_channels:
            if latents.shape[2] % 2 or latents.shape[3] % 2:
                raise UserError(
                    f"latents {list(latents.shape)} cannot be packed 2 x 2: their sides must be even"
                )
            latents = F.pixel_unshuffle(latents, 2)
        if latents.ndim != 4 or latents.shape[1] != sizes.latent_channels or 0 in latents.shape:
            raise UserError(
                f"{self.variant} reads latents [B, {sizes.latent_channels}, h, w], got {list(latents.shape)}"
            )
        if not torch.isfinite(latents).all():
            raise UserError("the latents hold NaN or infinity")
        noise = torch.as_tensor(sigma, dtype=torch.float64).flatten()
        if len(noise) not in (1, batch) or not bool(((noise >= 0) & (noise <= 1)).all()):
            raise UserError(f"sigma must be one number, or one a picture, from 0 to 1; got {noise.tolist()}")
        noise = noise.expand(batch).to(self.device)
        text = torch.zeros(batch, 0, sizes.text_width) if prompt_embeds is None else prompt_embeds
        if text.ndim != 3 or text.shape[2] != sizes.text_width or len(text) not in (1, batch):
            raise UserError(
                f"{self.variant} reads prompt_embeds [{batch}, L, {sizes.text_width}], got {list(text.shape)}"
            )
        text = text.expand(batch, -1, -1).to(self.device)
        latents = latents.to(self.device)
        if self.noising == "variance-preserving":
            norm = ((1 - noise) ** 2 + noise**2).sqrt()
            latents, noise = (latents.double() / norm[:, None, None, None]).to(latents.dtype), noise / norm

        generators = [torch.Generator().manual_seed(seed + number) for number in range(batch)]
        shape = (3, latents.shape[2] * self.factor, latents.shape[3] * self.factor)
        x = flow.noise_from(generators, *shape).to(self.device)
        times = self._steps(num_inference_steps)
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            at = torch.full((batch,), t, dtype=torch.float64, device=self.device)
            x = flow.x_0_from_velocity(x, self.net(x, at, text, latents, noise).to(x.dtype), t)
            if t_next > 0:
                x = flow.add_noise(x, flow.noise_from(generators, *shape).to(self.device), t_next)
        return x.clamp(-1, 1)

    def _steps(self, count: int) -> list[float]:
        """Times of so many steps: all of them, or those nearest to even places among them; one step starts at 1."""
        last = len(self.times) - 1
        if type(count) is not int or not 1 <= count <= last:
            raise UserError(f"{self.variant} decodes in 1 to {last} steps, got {count}")
        if count == 1:
            return [PURE, 0.0]
        return [self.times[round(place * last / count)] for place in range(count + 1)]


def is_pid_folder(folder: str | Path) -> bool:
    """Whether a folder says of itself that it is an imported PiD."""
    path = Path(folder) / CONFIG
    try:
        config = read_json(path) if path.is_file() else None
    except UserError:
        return False
    return isinstance(config, dict) and config.get("kind") == KIND


def load_pid(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> PublishedPiD:
    """Load a folder that `l2p import` wrote.

    Args:
        dtype: of the weights and the arithmetic; as saved if None.

    Raises:
        UserError: no such folder, a newer format, or anything but complete, matching, finite weights.
    """
    folder = Path(folder)
    if not is_pid_folder(folder):
        raise UserError(f"{folder} is no imported PiD: expected a folder that `l2p import` wrote from {REPO}")
    config = read_json(folder / CONFIG)
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{folder} has format {version!r}, this l2p reads {FORMAT_VERSION}: import it again")
    try:
        known = {f.name for f in fields(PiDSizes)}
        if set(config["network"]) != known or any(
            isinstance(value, int) and not 0 <= value < 100_000 for value in config["network"].values()
        ):
            raise ValueError(f"expected the sizes {', '.join(sorted(known))}")
        sizes = PiDSizes(**config["network"])
        with torch.device("meta"):
            net = PiDNet(sizes)
        times = tuple(float(t) for t in config["times"])
        if len(times) < 2 or times[-1] != 0 or any(a <= b for a, b in zip(times, times[1:], strict=False)):
            raise ValueError(f"times {times}")
        if config["latents"] not in LATENTS or config["noising"] not in NOISINGS:
            raise ValueError(f"latents {config['latents']!r}, noising {config['noising']!r}")
        name, noising, latents = str(config["variant"]), config["noising"], config["latents"]
        made = PublishedPiD(net, name, noising, latents, times, config["source"])
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / CONFIG} is broken ({reason}): import it again") from error
    entries = weights.read_entries(folder)
    weights.check_entries(net.state_dict(), entries, folder)
    check_file(folder / CONFIG)
    state = weights.read_weights(entries, device, dict.fromkeys(entries, dtype) if dtype else None)
    weights.check_finite(state, folder)
    net.load_state_dict(state, strict=True, assign=True)
    net.requires_grad_(False).eval()
    return made


def pid_config(name: str, variant: PiDVariant, source: dict[str, Any], written_by: str) -> dict[str, Any]:
    """``config.json`` of a folder."""
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "written_by": written_by,
        "variant": name,
        "latents": variant.family,
        "noising": variant.noising,
        "times": list(TIMES),
        "network": asdict(variant.sizes),
        "source": source,
        "non_commercial": True,
    }
