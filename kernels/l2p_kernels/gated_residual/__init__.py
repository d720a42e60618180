"""A gated residual branch, `x + gate * branch`, in one pass each way."""

from .api import gated_residual

__all__ = ["gated_residual"]
