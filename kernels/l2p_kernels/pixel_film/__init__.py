"""Per-pixel modulation from a core token, without the modulation ever lying in memory."""

from .api import pixel_film

__all__ = ["pixel_film"]
