"""The world's second version: the same attributes, captions and seeds, with larger subjects and finer textures."""

from .render import render, render_batch
from .scene import Scene

__all__ = ["Scene", "render", "render_batch"]
