"""Seconds of each component of a path: functions are wrapped where they live, nested ones are not counted twice."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch


class Clock:
    """Exclusive seconds by label: what runs inside a wrapped call under another label is taken off it.

    Args:
        device: a GPU is waited for at both ends of a call, so that its work falls under the right label.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """Let calls of ``owner.name`` count as ``label``."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            return self.call(label, function, *args, **kwargs)

        setattr(owner, name, timed)

    def call(self, label: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """``function(*args)``, counted as ``label``."""
        self._inner.append(0.0)
        start = self._now()
        try:
            return function(*args, **kwargs)
        finally:
            taken = self._now() - start
            inner = self._inner.pop()
            if self._inner:
                self._inner[-1] += taken
            self.seconds[label] = self.seconds.get(label, 0.0) + taken - inner

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
