"""Stopping a training between two steps: Ctrl-C and SIGTERM let the running step end and be kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A training that was asked to stop, and has kept a checkpoint; ``signum`` says by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopRequest:
    """Whether a signal asked for an end; a second one ends at once."""

    signum: int | None = None

    @property
    def requested(self) -> bool:
        return self.signum is not None

    def handle(self, signum: int, frame: Any) -> None:
        if self.requested:
            raise Stopped(signum)
        self.signum = signum

    def check(self) -> None:
        """Raises Stopped where a signal asked for an end."""
        if self.signum is not None:
            raise Stopped(self.signum)


@contextmanager
def stop_signals(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Within the block SIGINT and SIGTERM make a request; after it they mean what they meant before."""
    request = request or StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
