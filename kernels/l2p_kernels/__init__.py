"""Operators for pixel transformers: local attention on a 2-D grid and its companions.

Each operator is a folder: `api.py` checks and dispatches, `reference.py` is the specification in plain
torch, the other files are fast paths. `impl=` picks a path and never changes the result.
"""

from .adaln import adaln
from .gated_residual import gated_residual
from .patch_attention import patch_attention
from .philox import philox_normal
from .pixel_film import pixel_film

__all__ = ["adaln", "gated_residual", "patch_attention", "philox_normal", "pixel_film"]
