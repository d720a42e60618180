"""What both pages share: an application that answers its own hosts alone, its errors as lines, and its start."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from l2p.errors import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

TEMPLATES = Path(__file__).parent / "templates"
LOCAL = "127.0.0.1"


def new_app(host: str) -> FastAPI:
    """An empty application. Bound to this machine, it refuses other host names, so that no web page can reach it."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if host in (LOCAL, "localhost"):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[LOCAL, "localhost"])

    @app.exception_handler(UserError)
    def _(request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    return app


def page(name: str) -> str:
    """A page with the shared look and its own script inside; nothing in it comes from a user."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(name).render()


def serve(app: FastAPI, host: str, port: int, what: str) -> None:
    """Serve until Ctrl-C. Raises UserError if the address is taken or is not this machine's."""
    import uvicorn

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
    if host not in (LOCAL, "localhost", "::1"):
        print("anyone who can reach this address can use the page", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")
