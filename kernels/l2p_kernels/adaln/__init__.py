"""Adaptive normalisation with a gated residual, in one pass."""

from .api import adaln

__all__ = ["adaln"]
