"""What a student won, what it lost and what it invented: one metric a file, an evaluation that gathers them, a report.

The names below are loaded when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "FeatureStatistics": "frechet",
    "Interval": "bootstrap",
    "Seams": "seam_search",
    "SeamSearch": "seam_search",
    "bootstrap_interval": "bootstrap",
    "Clip": "clip",
    "clip_score": "clip",
    "cmmd": "clip",
    "color_difference": "color",
    "color_drift": "color",
    "departure_map": "invention",
    "detail_energy": "detail",
    "dists_distance": "perceptual",
    "downsample_consistency": "cycle",
    "find_seams": "seam_search",
    "frechet_distance": "frechet",
    "free_noise": "invention",
    "grid_share": "patch_artifacts",
    "high_frequency_energy": "spectrum",
    "invention_map": "invention",
    "kernel_distance": "kid",
    "latent_cycle_error": "cycle",
    "lpips_distance": "perceptual",
    "native_crops": "native",
    "patch_frechet": "native",
    "precision_recall": "precision_and_recall",
    "psnr": "psnr_ssim",
    "radial_power_spectrum": "spectrum",
    "repeated_share": "repetition",
    "seam_index": "seams",
    "seam_ratio": "seams",
    "ssim": "psnr_ssim",
    "wilson_interval": "bootstrap",
    "student_invention": "invention",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
