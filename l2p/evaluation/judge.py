"""The judge: a small CNN that reads the attributes of a landscape, trained on real renders only.

It sees pictures at 128 px (or what its file says), is used in no loss, and lends its features to the Frechet distance. The features feed
more than the class heads while it learns (a thumbnail of the picture, the strength of blur and noise), so that they
carry layout, colour and sharpness as well, and not only what the seven attributes need.

Legend: B batch, a attributes.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2p.checksums import check_file, write_checksums
from l2p.errors import UserError
from l2p.files import atomic_path
from l2p.landscapes import ATTRIBUTES

BUNDLED = Path(__file__).parent / "bundled" / "judge.safetensors"
SIZE = 128  # pixels a side, unless a judge's file names another; other pictures are resampled
FEATURES = 128


class _Residual(nn.Module):
    """Two 3x3 convolutions around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(width, width), nn.SiLU(), *_conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.body(x))


def _conv(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    # BatchNorm: at inference it is one multiply-add a value, or nothing once folded
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)


class Judge(nn.Module):
    """Features and attributes of pictures [B, 3, H, W] in [-1, 1].

    Attributes:
        report: what is known of it: accuracy on held-out real renders, by attribute and mean; the recipe's figures.
        reference_mean, reference_covariance: its features on those renders (``report["test_images"]`` of them), the
            reference of every Frechet distance, so that an evaluation need not render thousands of pictures again.
    """

    def __init__(self, widths: tuple[int, int, int] = (48, 96, 160), size: int = SIZE) -> None:
        super().__init__()
        first, middle, last = widths
        self.widths, self.size = tuple(widths), size
        self.near = nn.Sequential(
            nn.PixelUnshuffle(2), *_conv(12, first, 2), nn.SiLU(), _Residual(first),
            *_conv(first, middle, 2), nn.SiLU(), _Residual(middle),
        )  # fmt: skip
        self.far = nn.Sequential(*_conv(middle, last, 2), nn.SiLU(), _Residual(last))
        self.project = nn.Linear(middle + 4 * last, FEATURES)
        self.classify = nn.Linear(FEATURES, sum(map(len, ATTRIBUTES.values())))
        # set after training on unseen real renders, which then have a mean feature variance of 1
        self.register_buffer("feature_scale", torch.ones(()))
        self.register_buffer("reference_mean", torch.zeros(FEATURES))
        self.register_buffer("reference_covariance", torch.eye(FEATURES))
        self.report: dict = {}

    def embed(self, images: Tensor) -> Tensor:
        """Unscaled features [B, 128], differentiable."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}")
        if images.shape[2:] != (self.size, self.size):
            images = F.interpolate(
                images.float(), (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        near = self.near(images.contiguous(memory_format=torch.channels_last))
        far = F.adaptive_avg_pool2d(self.far(near), 2)  # quarters of the picture: where things are
        return self.project(torch.cat([near.mean((2, 3)), far.flatten(1)], 1))

    def logits(self, embedding: Tensor) -> list[Tensor]:
        """One [B, values] for each attribute."""
        return list(
            self.classify(F.silu(embedding)).split([len(values) for values in ATTRIBUTES.values()], 1)
        )

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features [B, 128] float32 for the Frechet distance."""
        return self.judge(images)[0]

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The value of every attribute, int64 [B, a]."""
        return self.judge(images)[1]

    @torch.no_grad()
    def judge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and attributes in one pass."""
        weight = self.project.weight
        embedding = self.embed(images.to(weight.device, weight.dtype)).float()
        attributes = torch.stack([logits.argmax(1) for logits in self.logits(embedding.to(weight.dtype))], 1)
        return embedding * self.feature_scale, attributes


def save_judge(judge: Judge, path: str | Path) -> None:
    """Weights in fp16 (statistics in fp32), with the configuration and the report in the file's metadata."""
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().cpu().half().contiguous()
        if name in _weights(judge)
        else tensor.cpu().contiguous()
        for name, tensor in judge.state_dict().items()
    }
    metadata = {
        "widths": json.dumps(judge.widths),
        "size": json.dumps(judge.size),
        "attributes": json.dumps(ATTRIBUTES),
        "report": json.dumps(judge.report),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    write_checksums(Path(path).parent, [Path(path)])


def _weights(judge: Judge) -> set[str]:
    statistics = ("feature_scale", "reference_mean", "reference_covariance")
    return {name for name, tensor in judge.state_dict().items() if tensor.is_floating_point()} - set(
        statistics
    )


def load_judge(path: str | Path = BUNDLED, device: torch.device | str = "cpu") -> Judge:
    """Read a judge, by default the bundled one, in evaluation mode.

    Raises:
        UserError: the file is missing, broken, or was trained for other attributes.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"no judge at {path}: train one with `l2p train-judge recipes/judge-landscapes.yaml`")
    check_file(Path(path))
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}
        judge = Judge(tuple(json.loads(metadata["widths"])), json.loads(metadata.get("size", str(SIZE))))
        known = json.loads(metadata["attributes"])
        judge.report = json.loads(metadata["report"])
        judge.load_state_dict(weights, strict=True)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is no judge of this version: {str(error).splitlines()[0]}") from error
    if {name: tuple(values) for name, values in known.items()} != ATTRIBUTES:
        raise UserError(f"the judge in {path} knows other attributes than landscapes has: train it again")
    return judge.float().eval().requires_grad_(False).to(device)


@lru_cache(maxsize=2)
def bundled_judge(device: str = "cpu") -> Judge:
    """The bundled judge, loaded once."""
    return load_judge(BUNDLED, device)
