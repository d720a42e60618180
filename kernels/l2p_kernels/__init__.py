"""Operators for pixel transformers: local attention on a 2-D grid and its companions.

Each operator is a folder: `api.py` checks and dispatches, `reference.py` is the specification in plain
torch, the other files are fast paths. `impl=` picks a path and never changes the result.
"""

from .adaln import adaln
from .patch_attention import patch_attention
from .philox import philox_normal

__all__ = ["adaln", "patch_attention", "philox_normal"]
