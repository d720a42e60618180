"""uvicorn's HTTP with an end to the headers, which it does not have: a client that stops in the middle would stay for ever."""

from __future__ import annotations

import asyncio
import time

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # from the first byte of a connection or a request to the end of its headers
MOST_WAITING = 128  # connections without a whole request; one more closes the oldest of them


class BoundedProtocol(H11Protocol):
    """As its base. What has sent no whole headers is closed after a time, and earlier where there are too many."""

    _since, _timer = 0.0, None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        waiting = [other for other in self.connections if getattr(other, "_timer", None) is not None]
        if len(waiting) >= MOST_WAITING:
            min(waiting, key=lambda other: other._since)._give_up()
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._done()
        elif self._timer is None:  # the start of another request on a connection that was kept
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._since = time.monotonic()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _done(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _give_up(self) -> None:
        self._done()
        self.connections.discard(self)
        self.transport.abort()
