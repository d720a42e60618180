"""The world's first version under the names that every version has."""

from .render import render, render_batch
from .scene import Scene

__all__ = ["Scene", "render", "render_batch"]
