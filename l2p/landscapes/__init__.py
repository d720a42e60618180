"""A small procedural world: the same scene at any resolution, with a caption and attributes."""

from .caption import caption, parse
from .render import render, render_batch
from .scene import ATTRIBUTES, Scene
from .worlds import World, WorldName, load_world

__all__ = [
    "ATTRIBUTES",
    "Scene",
    "World",
    "WorldName",
    "caption",
    "load_world",
    "parse",
    "render",
    "render_batch",
]
