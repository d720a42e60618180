"""A review of eight small pictures, a page served on a free port, and patience with a browser."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HOSTILE = "<img src=x onerror=document.title='owned'> & a lake"
PROMPTS = [HOSTILE, "a river", "a house", "pines"]


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path, Path]:
    """Two folders of four pictures of equal names (even colours: red is "new", blue is "old"), and their prompts."""
    for name, color in (("new", (200, 40, 40)), ("old", (40, 40, 200))):
        (tmp_path / name).mkdir()
        for k in range(4):
            picture = np.full((32, 32, 3), color, np.uint8)
            picture[: 4 + k] = 255
            Image.fromarray(picture).save(tmp_path / name / f"{k}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return tmp_path / "new", tmp_path / "old", tmp_path / "prompts.txt"


@pytest.fixture
def review(folders, tmp_path):
    from l2p.review.pairs import prepare

    new, old, prompts = folders
    return prepare(tmp_path / "review", new, str(old), prompts=str(prompts), num_images=4)


@pytest.fixture
def serve():
    """``serve(app) -> address`` of an application that runs until the test ends."""
    import uvicorn

    running = []

    def start(app) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        limit = time.monotonic() + 120
        while not server.started:
            assert time.monotonic() < limit and thread.is_alive()
            time.sleep(0.02)
        running.append((server, thread))
        return f"http://127.0.0.1:{port}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def call() -> Callable[..., tuple[int, object]]:
    """``call(address, "/api/state", reviewer="Ann") -> (status, value)``; a ``body`` makes it a POST."""

    def ask(address: str, path: str, body: object = None, host: str | None = None, **query: str):
        request = urllib.request.Request(f"{address}{path}?{urllib.parse.urlencode(query)}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if host:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                data = reply.read()
                kind = reply.headers.get_content_type()
                return reply.status, json.loads(data) if kind == "application/json" else data
        except urllib.error.HTTPError as error:
            data = error.read()
            return error.code, json.loads(data) if data.startswith(b"{") else data

    return ask


@pytest.fixture
def until(chromium):
    """``until(condition)`` waits, long on a busy machine, until a function of nothing is true; errors of the page fail."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    def wait(condition) -> None:
        WebDriverWait(chromium, 120, 0.1, [StaleElementReferenceException]).until(lambda _: condition())

    return wait
