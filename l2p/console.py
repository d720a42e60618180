"""Rich's console for tables and bars, in which texts are cleaned as :mod:`l2p.terminal` says and its own colours stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import rich.console
from rich.console import ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from l2p.terminal import clean, raw_stream


class Console(rich.console.Console):
    """As rich's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.push_render_hook(_CleanTexts())

    @property
    def file(self) -> IO[str]:
        return raw_stream(super().file)

    @file.setter
    def file(self, stream: IO[str]) -> None:
        rich.console.Console.file.fset(self, stream)  # type: ignore[attr-defined]


class _CleanTexts(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Clean(renderable) for renderable in renderables]


class _Clean:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self.renderable = renderable

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in console.render(self.renderable, options):
            yield Segment(text if control else clean(text), style, control)
