"""What stands before both pages: who may ask (Host, Origin, Sec-Fetch-Site), how much, and what a browser may do with answers.

A web page that the user visits can send requests to servers on the user's machine, also under a name of its own that it lets
resolve to 127.0.0.1 (DNS rebinding). So a request is answered only under a name that is this machine's, and, where the
browser says who sent it, only to our own pages.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

MAX_BODY = 64 * 1024  # bytes of a request: a prompt of 1,000 characters, or 50 boxes
BODY_SECONDS = 10.0  # a slower body is given up
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # a reviewer's name is in the address
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Refused(Exception):
    """A request that is not passed on: HTTP status and reason."""


class Guard:
    """ASGI middleware that refuses foreign and oversized requests and adds the security headers.

    Args:
        host: the address that the server is bound to.
    """

    def __init__(self, app: Any, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no page of ours opens a WebSocket
            return await send({"type": "websocket.close", "code": 1008})

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message.get("headers", [])}
                added = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [
                    *message.get("headers", []),
                    *(pair for pair in added if pair[0] not in given),
                ]
            await send(message)

        try:
            self._check(scope)
            body = await _body(scope, receive)
        except Refused as refused:
            status, reason = refused.args
            return await _answer(send_with_headers, status, reason)
        sent = False

        async def replay() -> dict[str, Any]:
            nonlocal sent
            if sent:
                return await receive()  # the client's leaving
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send_with_headers)

    def _check(self, scope: Scope) -> None:
        """Raises Refused for what does not come from one of our own pages or from a program of the user."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key = name.decode("latin-1").lower()
            if key in headers and key in ("host", "origin", "sec-fetch-site", "content-length"):
                raise Refused(400, f"the header {key} stands there twice")
            headers[key] = value.decode("latin-1")
        host = headers.get("host", "")
        if not is_own_name(_name_of(host), self.host):
            raise Refused(
                400, "this server does not answer under that name: open the address that it printed"
            )
        origin = headers.get("origin")
        own = {f"{scheme}://{host.lower()}" for scheme in ("http", "https")}  # https by way of a proxy
        if origin is not None and origin.lower() not in own:
            raise Refused(403, "requests of other web pages are refused")
        opens_page = (
            scope["method"] == "GET"
            and scope["path"] == "/"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not opens_page:
            raise Refused(403, "requests of other web pages are refused")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":  # a form of another page cannot send it
            raise Refused(415, "expected a body of the type application/json")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refused(405, "expected GET or POST")


def is_own_name(name: str, bound: str) -> bool:
    """Whether a Host header's name can be this machine's: never a name that a stranger's DNS resolves.

    Args:
        bound: the address the server listens on; on a loopback address, loopback names alone are right.
    """
    local = is_loopback(bound)
    try:
        address = ipaddress.ip_address(name)
        return address.is_loopback or not local
    except ValueError:
        pass
    own = {"localhost", bound.lower()}
    if not local:
        machine = socket.gethostname().lower()
        own |= {machine, f"{machine.partition('.')[0]}.local", socket.getfqdn().lower()}
    return name.lower() in own


def is_loopback(host: str) -> bool:
    """Whether an address, or all that a name resolves to, is reached from this machine alone."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)} if host else set()
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(ipaddress.ip_address(str(x).partition("%")[0]).is_loopback for x in found)


def _name_of(host: str) -> str:
    """A Host header without its port and brackets; "" where it is no host."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s\[\]:/@]+))(?::\d{1,5})?", host)
    return (match[1] or match[2]) if match else ""


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The whole body. Raises Refused for one that is too large, too slow, or given up."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if not length.isdigit() or int(length[:12]) > MAX_BODY:
        raise Refused(413, f"a request has at most {MAX_BODY} bytes")
    body = bytearray()

    async def read() -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request was cut short")
            body.extend(message.get("body", b""))
            if len(body) > MAX_BODY:
                raise Refused(413, f"a request has at most {MAX_BODY} bytes")
            if not message.get("more_body", False):
                return

    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refused(408, "the request came too slowly") from None
    return bytes(body)


async def _answer(send: Send, status: int, reason: str) -> None:
    data = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    headers.append((b"connection", b"close"))  # what is left of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def policy_of(html: str) -> str:
    """The content security policy of a page: its own script and style by their hashes, and nothing else that runs."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {hashes('script')}",
            f"style-src {hashes('style')}",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
