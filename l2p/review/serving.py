"""What both pages share: an application behind the guard, its errors as lines, and its start."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p.errors import UserError
from l2p.review.guard import Guard, is_loopback, policy_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

TEMPLATES = Path(__file__).parent / "templates"
LOCAL = "127.0.0.1"
MAX_CONNECTIONS = 256


def check_address(host: str, port: int) -> None:
    """Raises UserError for a port that is none, or a host that is empty (which would be all of them) or unknown."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port is {port}, expected 1 to 65535")
    if not host.strip():
        raise UserError(
            "--host is empty, expected an address: 127.0.0.1 serves this machine alone, 0.0.0.0 the whole network"
        )
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UserError(
            f"--host is {host!r}, which is no address and no known name: 127.0.0.1 serves this machine alone"
        ) from None


def new_app(host: str) -> FastAPI:
    """An empty application behind the :class:`~l2p.review.guard.Guard` of an address."""
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, host=host)

    @app.exception_handler(UserError)
    def _(request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    def _(request, error: RequestValidationError) -> JSONResponse:
        # the usual answer repeats what was sent, which may be no text and no number that JSON has
        return JSONResponse({"detail": "expected a JSON object, and the parameters of this address"}, 422)

    return app


def page(name: str) -> HTMLResponse:
    """A page with the shared look and its own script inside; nothing in it comes from a user."""
    from fastapi.responses import HTMLResponse
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    html = environment.get_template(name).render()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy_of(html)})


def server_options() -> dict[str, Any]:
    """What bounds the connections of a server of uvicorn."""
    from l2p.review.protocol import BoundedProtocol

    return {
        "http": BoundedProtocol,
        "ws": "none",
        "server_header": False,
        "limit_concurrency": MAX_CONNECTIONS,
        "timeout_keep_alive": 5,
        "timeout_graceful_shutdown": 5,
    }


def serve(app: FastAPI, host: str, port: int, what: str) -> None:
    """Serve until Ctrl-C. Raises UserError if the address is taken or is not this machine's."""
    import uvicorn

    check_address(host, port)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({error}): choose another --port or --host"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    print(f"{what}: http://{shown}:{port}/  (Ctrl-C ends it)", flush=True)
    if not is_loopback(host):
        print("anyone who can reach this address can use the page", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", **server_options())
