"""Requests that end: urllib bounds the time between two bytes, so that a server may take for ever with one a second."""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.request
from typing import Any


def handlers_within(seconds: float) -> list[urllib.request.BaseHandler]:
    """Handlers for an opener of one request that raises TimeoutError so long after now, whatever the server sends till then."""
    end = time.monotonic() + seconds

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            self.sock = _Ending(self.sock, end)

    class SecureConnection(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            self.sock = _Ending(self.sock, end)

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(Connection, request)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(SecureConnection, request, context=self._context)

    return [Plain(), Secure()]


class _Ending:
    """A connected socket as `http.client` uses it, whose reads and writes share one end."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock, self._end = sock, end

    def sendall(self, data: Any) -> None:
        _limit(self._sock, self._end)
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._end))

    def close(self) -> None:
        self._sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock, self._end = sock, end
        self._file = sock.makefile(
            "rb", buffering=0
        )  # holds the socket open when the connection lets go of it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        _limit(self._sock, self._end)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _limit(sock: socket.socket, end: float) -> None:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("it took too long")
    sock.settimeout(left)
