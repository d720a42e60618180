"""Operators for pixel transformers: local attention on a 2-D grid, and white noise from a counter.

Each operator is a folder: `api.py` checks and dispatches, `reference.py` is the specification in plain
torch, the other files are fast paths. `impl=` picks a path and never changes the result.
"""

from .patch_attention import patch_attention
from .philox import philox_normal

__all__ = ["patch_attention", "philox_normal"]
