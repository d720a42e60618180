"""How faithful a set of pictures is to the pictures it should repeat, one by one: structure, colour, and from afar."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2p.evaluation.bootstrap import bootstrap_interval
from l2p.evaluation.color import color_difference, color_drift
from l2p.evaluation.cycle import downsample_consistency
from l2p.evaluation.perceptual import backbone_available, dists_distance, lpips_distance
from l2p.evaluation.psnr_ssim import psnr, ssim

FACTOR = 8  # pixels averaged before pictures are compared from afar


class Pairs:
    """Gathers a few numbers a pair; the costly ones of the first ``limit`` pairs only (None: of all)."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.values: dict[str, list[Tensor]] = {}
        self.perceptual = backbone_available()

    def update(self, images: Tensor, reference: Tensor) -> None:
        """Add pairs, both [B, 3, H, W] in [-1, 1]."""
        self._add("psnr", psnr(images, reference))
        self._add("color_drift", color_drift(images, reference))
        self._add("color_drift_worst", color_difference(images, reference).flatten(1).max(1).values)
        if not images.shape[2] % FACTOR and not images.shape[3] % FACTOR:
            self._add("downsample_consistency", downsample_consistency(images, reference, FACTOR))
        done = sum(map(len, self.values.get("ssim", [])))
        room = len(images) if self.limit is None else max(0, self.limit - done)
        if room and min(images.shape[2:]) >= 11:
            self._add("ssim", ssim(images[:room], reference[:room]))
            if self.perceptual and min(images.shape[2:]) >= 32:
                self._add("lpips", lpips_distance(images[:room], reference[:room]))
                self._add("dists", dists_distance(images[:room], reference[:room]))

    def _add(self, name: str, values: Tensor) -> None:
        self.values.setdefault(name, []).append(values.cpu())

    def report(self, to: str) -> dict[str, Any]:
        """JSON values; ``to`` names the reference. LPIPS and DISTS are None where their weights are missing."""
        means = {name: torch.cat(parts).numpy() for name, parts in self.values.items()}
        report: dict[str, Any] = {}
        for name in ("ssim", "lpips", "dists"):
            report[f"{name}_to_{to}"] = float(means[name].mean()) if name in means else None
        for name in ("color_drift", "color_drift_worst", "downsample_consistency"):
            report[name] = float(means[name].mean()) if name in means else None
        psnrs = means["psnr"]
        if len(psnrs) > 1:
            report[f"psnr_to_{to}_interval"] = list(
                bootstrap_interval(lambda chosen: np.mean(psnrs[chosen]), len(psnrs))
            )
        return report
