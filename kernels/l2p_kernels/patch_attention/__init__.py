"""Tiled local attention on a 2-D grid with QK-RMSNorm and axial RoPE."""

from .api import patch_attention

__all__ = ["patch_attention"]
