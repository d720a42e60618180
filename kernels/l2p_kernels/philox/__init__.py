"""White noise from a counter: any numbers of a stream, where they are used, the same on every device."""

from .api import philox_normal
from .reference import philox4x32

__all__ = ["philox4x32", "philox_normal"]
