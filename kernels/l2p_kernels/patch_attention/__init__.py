"""Tiled local attention on a 2-D grid with global tokens, QK-RMSNorm and axial RoPE."""

from .api import patch_attention

__all__ = ["patch_attention"]
