"""A small procedural world: the same scene at any resolution, with a caption and attributes."""

from .caption import caption, parse
from .render import render, render_batch
from .scene import ATTRIBUTES, Scene

__all__ = ["ATTRIBUTES", "Scene", "caption", "parse", "render", "render_batch"]
