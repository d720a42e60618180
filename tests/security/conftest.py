"""Servers on free ports, and requests as a hostile page or program would send them."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

HOSTILE = "<img src=x onerror=document.title='owned'></script><script>alert(1)</script> & a lake"


@pytest.fixture(scope="session")
def imported() -> None:
    """What reading a student imports, so that it is not measured."""
    from l2p.students.io import load_student
    from l2p.students.resolve import BUNDLED

    load_student(BUNDLED / "landscapes-128")


@pytest.fixture
def frugal(imported):
    """The test may take at most 150 MB more than there was, and 20 s."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB
    assert time.monotonic() - start < 20


@pytest.fixture
def review_folder(tmp_path) -> Path:
    """A review of four pairs, the first of a hostile prompt."""
    from l2p.review.pairs import prepare

    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        for k in range(4):
            Image.fromarray(np.full((16, 16, 3), 40 * k, np.uint8)).save(tmp_path / name / f"{k}.png")
    (tmp_path / "prompts.txt").write_text("\n".join([HOSTILE, "a river", "a house", "pines"]))
    folder = tmp_path / "review"
    prompts = str(tmp_path / "prompts.txt")
    prepare(folder, tmp_path / "new", str(tmp_path / "old"), prompts=prompts, num_images=4)
    return folder


@pytest.fixture
def serve():
    """``serve(app) -> port`` of an application that runs until the test ends."""
    import uvicorn

    from l2p.review.serving import server_options

    running = []

    def start(app) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", **server_options())
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        limit = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < limit and thread.is_alive()
            time.sleep(0.01)
        running.append((server, thread))
        return port

    yield start
    for server, thread in running:
        server.should_exit = server.force_exit = True
        thread.join(30)


@pytest.fixture
def ask() -> Callable[..., tuple[int, dict, bytes]]:
    """``ask(port, "POST", "/api/undo", body, headers, reviewer="Ann") -> (status, headers, body)``."""

    def call(port, method, path, body=None, headers=None, **query):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        sent = {"Content-Type": "application/json"} if body is not None else {}
        sent |= headers or {}
        data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            connection.request(method, target, data, sent)
            reply = connection.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    return call
