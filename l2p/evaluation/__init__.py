"""What a student won and what it lost: one metric a file, an evaluation that gathers them, a report to look at."""

from .detail import detail_energy
from .fidelity import psnr
from .frechet import FeatureStatistics, frechet_distance
from .seams import seam_index, seam_ratio

__all__ = ["FeatureStatistics", "detail_energy", "frechet_distance", "psnr", "seam_index", "seam_ratio"]
