"""The pages of `review` and `demo` against web pages, strangers on the network, and clients that mean no good."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from l2p.errors import UserError
from l2p.review import guard
from l2p.review.answers import Answer, Answers
from l2p.review.demo import demo_app
from l2p.review.guard import is_own_name
from l2p.review.pairs import read_review
from l2p.review.server import review_app

GIVEN = {"pair": "0000", "follows": "left", "real": "right", "boxes": []}
ROUTES = [
    ("GET", "/api/state", None),
    ("GET", "/api/picture", None),
    ("POST", "/api/answer", GIVEN),
    ("POST", "/api/undo", {}),
]
FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "file://127.0.0.1:{port}"},
    {"Origin": "http://[::1"},
    {"Origin": ""},
    {"Origin": "http://127.0.0.1:{port}/x"},
    {"Origin": "http://me@127.0.0.1:{port}"},
    {"Origin": "http://localhost.evil.example:{port}"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Host": "evil.example"},
    {"Host": "evil.example:{port}"},
    {"Host": "127.0.0.1.evil.example:{port}"},
    {"Host": "192.168.0.1:{port}"},
    {"Host": ""},
]


def reviewed(folder):
    return review_app(read_review(folder), folder, sources=(folder.parent / "new", folder.parent / "old"))


@pytest.fixture
def port(review_folder, serve):
    return serve(reviewed(review_folder))


@pytest.mark.parametrize("foreign", FOREIGN, ids=str)
def test_no_route_answers_another_web_page(port, ask, review_folder, foreign):
    headers = {name: value.format(port=port) for name, value in foreign.items()}
    Answers(review_folder / "answers").add("Ann", Answer("0001", "a", "b"))
    for method, path, body in ROUTES:
        query = {"reviewer": "Ann"} | ({"pair": "0000", "side": "left"} if path == "/api/picture" else {})
        status, _, data = ask(port, method, path, body, headers, **query)
        assert status in (400, 403) and b"Traceback" not in data and b"PNG" not in data, path
    assert list(Answers(review_folder / "answers").of("Ann")) == ["0001"]  # neither answered nor undone


def test_the_page_itself_opens_by_a_link_and_stands_in_no_frame(port, ask):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ask(port, "GET", "/", None, link)[0] == 200
    assert ask(port, "GET", "/", None, {**link, "Sec-Fetch-Dest": "iframe"})[0] == 403
    own = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}
    assert ask(port, "POST", "/api/answer", GIVEN, own, reviewer="Ann")[0] == 200
    assert ask(port, "GET", "/api/state", None, {"Host": f"localhost:{port}"}, reviewer="Ann")[0] == 200


def test_a_form_cannot_post(port, ask, review_folder):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        headers = {"Content-Type": kind}
        assert ask(port, "POST", "/api/answer", json.dumps(GIVEN).encode(), headers, reviewer="A")[0] == 415
    assert Answers(review_folder / "answers").all() == {}


def test_the_policy_lets_our_own_script_run_and_nothing_else(port, ask):
    status, headers, html = ask(port, "GET", "/")
    policy = headers["content-security-policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy
    assert policy == guard.policy_of(html.decode())
    assert guard.policy_of(html.decode().replace("</script>", ";alert(1)</script>", 1)) != policy
    for path in ("/", "/api/state?reviewer=A", "/nowhere"):
        found = ask(port, "GET", path)[1]
        assert found["x-content-type-options"] == "nosniff" and found["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in found["content-security-policy"]


def test_texts_of_strangers_are_data_in_json_and_never_html(port, ask):
    for _ in range(4):
        status, headers, data = ask(port, "GET", "/api/state", reviewer="<script>alert(1)</script>")
        assert status == 200 and headers["content-type"] == "application/json"
    page = ask(port, "GET", "/")[2]
    assert b"onerror" not in page
    script = re.search(rb"<script>(.*)</script>", page, re.DOTALL)[1]
    assert (
        b"innerHTML" not in script and b"insertAdjacentHTML" not in script and b"document.write" not in script
    )


@pytest.mark.parametrize("pair", ["../../etc/passwd", "/etc/passwd", "0000/../0001", "%2e%2e", "0000\x00"])
def test_picture_addresses_lead_nowhere_else(port, ask, pair):
    status, _, data = ask(port, "GET", "/api/picture", reviewer="A", pair=pair, side="left")
    assert status == 400 and b"root:" not in data
    for path in ("/../../etc/passwd", "/..%2f..%2fetc/passwd", "/api/picture/../../../etc/passwd"):
        assert ask(port, "GET", path)[0] in (400, 404, 422)


def rewrite(folder, **changes) -> None:
    """Each pair of a review.json, as a stranger would write them."""
    review = json.loads((folder / "review.json").read_text())
    review.pop("checksum", None)  # whoever writes the file can leave it out
    for pair in review["pairs"]:
        pair |= changes
    (folder / "review.json").write_text(json.dumps(review))


def test_a_review_folder_of_a_stranger_shows_no_file_of_this_machine(review_folder, serve, ask, tmp_path):
    private = tmp_path / "private.png"
    shutil.copy(tmp_path / "new" / "0.png", private)
    (tmp_path / "new" / "id_rsa").write_text("PRIVATE KEY")
    (review_folder / "link.png").symlink_to(private)
    outside, no_picture = b"outside the folders", b"no picture"
    for path, reason in (
        (private, outside),
        (tmp_path / "new" / ".." / "private.png", outside),
        (review_folder / "link.png", outside),
        ("/etc/passwd", outside),
        (tmp_path / "new" / "id_rsa", no_picture),
    ):
        rewrite(review_folder, a=str(path), b=str(path))
        port = serve(reviewed(review_folder))
        status, _, data = ask(port, "GET", "/api/picture", reviewer="A", pair="0000", side="left")
        assert status == 400 and reason in data, path


@pytest.mark.parametrize(
    "changes", [{"a": 5}, {"id": ["x"]}, {"prompt": {"a": 1}}, {"b": None}, {"a": "\0"}], ids=str
)
def test_a_review_of_odd_values_is_a_line(review_folder, changes):
    rewrite(review_folder, **changes)
    with pytest.raises(UserError, match=r"is no review of this version"):
        read_review(review_folder)


def test_a_review_is_not_started_with_links_to_private_pictures(tmp_path, review_folder):
    from l2p.review.pairs import prepare

    shutil.move(tmp_path / "new" / "0.png", tmp_path / "private.png")
    (tmp_path / "new" / "0.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(UserError, match="is a link out of its folder"):
        prepare(tmp_path / "another", tmp_path / "new", str(tmp_path / "old"))


HUGE = '{"pair":"0000","follows":"left","real":"left","boxes":[{"side":"left","x":%s,"y":0,"w":1,"h":1}]}'
ODD = [
    HUGE % ("1" + "0" * 400),
    HUGE % "NaN",
    HUGE % "1e999",
    '{"pair": %s}' % ("9" * 5000),
    '{"pair": "\\ud800"}',
    '"\\ud800"',
    "[NaN]",
    "\ufeff{}",
    "{",
]


@pytest.mark.parametrize("body", ODD, ids=lambda body: body[:20] + body[-30:-20])
def test_odd_bodies_are_refused_and_no_fault_of_the_server(port, ask, review_folder, body):
    status, _, data = ask(
        port, "POST", "/api/answer", body.encode(), {"Content-Type": "application/json"}, reviewer="A"
    )
    assert status in (400, 422) and json.loads(data)["detail"]
    assert Answers(review_folder / "answers").all() == {}


@pytest.mark.parametrize("prompt", ["\ud800", "a\udfffb", "", " ", 5, "x" * 1001])
def test_a_prompt_of_the_demo_is_a_text(prompt):
    from l2p.review.demo import DrawRequest

    with pytest.raises(UserError, match="the prompt"):
        DrawRequest.check({"prompt": prompt, "seed": 1, "height": 8, "width": 8, "path": "l2p"})


def test_bodies_are_bounded_before_they_are_read(port, ask, review_folder, monkeypatch):
    huge = json.dumps({**GIVEN, "boxes": ["x" * guard.MAX_BODY]}).encode()
    assert (
        ask(port, "POST", "/api/answer", huge, {"Content-Type": "application/json"}, reviewer="A")[0] == 413
    )
    with socket.create_connection(
        ("127.0.0.1", port), timeout=30
    ) as client:  # of a length that is never sent
        client.sendall(
            b"POST /api/answer?reviewer=A HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        assert b" 413 " in client.recv(100)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:  # in pieces without a length
        client.sendall(
            b"POST /api/answer?reviewer=A HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        reply = b""
        try:
            for _ in range(guard.MAX_BODY // 4096 + 8):
                client.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            reply = client.recv(100)
        except OSError:
            pass  # the server has closed the connection meanwhile
        assert b" 413 " in reply or not reply
    deep = b'{"pair": ' + b"[" * 30_000 + b"}"
    assert ask(port, "POST", "/api/answer", deep, reviewer="A")[0] in (400, 422)
    boxes = [{"side": "left", "x": 0, "y": 0, "w": 1, "h": 1}] * 51
    assert ask(port, "POST", "/api/answer", {**GIVEN, "boxes": boxes}, reviewer="A")[0] == 400
    assert Answers(review_folder / "answers").all() == {}


def test_a_slow_body_is_given_up(port, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(
            b"POST /api/undo?reviewer=A HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10\r\n\r\n{"
        )
        assert b" 408 " in client.recv(100)


def test_fifty_slow_clients_keep_no_one_waiting(port, ask):
    slow = []
    try:
        for number in range(50):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(b"POST /api/undo?reviewer=A HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            if number % 2:  # half of them stop in the headers, half in the body
                client.sendall(b"Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{")
            slow.append(client)
        start = time.monotonic()
        assert ask(port, "GET", "/api/state", reviewer="Ann")[0] == 200
        assert time.monotonic() - start < 5
    finally:
        for client in slow:
            client.close()


def test_clients_that_stop_in_the_headers_lock_nobody_out(port, ask, monkeypatch):
    """300 of them: more than the server has connections; those that come later than others are closed after a while."""
    from l2p.review import protocol, serving

    monkeypatch.setattr(protocol, "HEADER_SECONDS", 1.0)
    clients = []
    try:
        for _ in range(serving.MAX_CONNECTIONS + 44):
            client = socket.create_connection(("127.0.0.1", port), timeout=30)
            client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
            clients.append(client)
        assert ask(port, "GET", "/api/state", reviewer="Ann")[0] == 200
        start = time.monotonic()
        for client in clients:
            try:
                assert client.recv(100) == b""
            except ConnectionResetError:
                pass
        assert time.monotonic() - start < 10
    finally:
        for client in clients:
            client.close()


def test_the_headers_of_a_second_request_have_an_end_too(port, monkeypatch):
    from l2p.review import protocol

    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 404 " in client.recv(4096)
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        with contextlib.suppress(ConnectionResetError):
            while client.recv(4096):
                pass  # the rest of the first answer


def test_more_clients_than_connections_get_an_answer_that_says_so(review_folder, serve, ask, monkeypatch):
    from l2p.review import serving

    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 3)
    port = serve(reviewed(review_folder))
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    assert ask(port, "GET", "/api/state", reviewer="Ann")[0] == 503
    for client in idle:
        client.close()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "OPTIONS", "PATCH", "CONNECT"])
def test_other_methods_are_refused(port, ask, method):
    status, _, data = ask(port, method, "/api/undo", reviewer="A")
    assert status == 405 and b"expected GET or POST" in data  # by the guard, before the application


@pytest.mark.parametrize("header", ["Host", "Origin", "Sec-Fetch-Site", "Content-Length"])
def test_a_header_that_stands_there_twice_is_refused(port, header):
    values = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "none"}
    sent = {"Host": f"127.0.0.1:{port}", header: values.get(header, "0")}
    lines = [f"{name}: {value}" for name, value in sent.items()] + [f"{header}: {sent[header]}"]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(("GET / HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
        reply = client.recv(200)
    # h11 itself refuses two hosts, and joins two equal lengths
    assert b" 400 " in reply or header == "Content-Length", reply


def test_browsers_are_told_to_keep_answers_to_us(port, ask):
    for path in ("/", "/api/state?reviewer=A", "/api/picture?reviewer=A&pair=0000&side=left", "/nowhere"):
        found = ask(port, "GET", path)[1]
        assert found["cross-origin-resource-policy"] == found["cross-origin-opener-policy"] == "same-origin"
        assert found["cache-control"] == "no-store"


@pytest.mark.parametrize("kind", ["link", "second name", "fifo", "folder"])
def test_answers_go_to_a_file_of_ours_alone(tmp_path, kind):
    """And so do the rows of a manifest, a language model's answers and a lock."""
    from l2p.files import append_line
    from l2p.locks import locked
    from l2p.picture_manifest import add_to_manifest

    answers = Answers(tmp_path / "answers")
    (tmp_path / "answers").mkdir()
    (tmp_path / "precious").write_text("x")
    places = (answers._path("Ann"), tmp_path / "metadata.jsonl", tmp_path / "llm.jsonl", tmp_path / ".lock")
    for place in places:
        if kind == "link":
            place.symlink_to(tmp_path / "precious")
        elif kind == "second name":
            os.link(tmp_path / "precious", place)
        else:
            os.mkfifo(place) if kind == "fifo" else place.mkdir()

    def lock() -> None:
        with locked(tmp_path):
            pass

    for write in (
        lambda: answers.add("Ann", Answer("0000", "a", "b")),
        lambda: add_to_manifest(tmp_path, {"file_name": "a.png"}),
        lambda: append_line(tmp_path / "llm.jsonl", "x"),
        lock,
    ):
        with pytest.raises(UserError, match="remove it|cannot lock"):
            write()
    assert (tmp_path / "precious").read_text() == "x" and all(os.path.lexists(place) for place in places)


def test_a_line_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    from l2p.files import append_line

    path = tmp_path / "a.jsonl"
    append_line(path, "one")
    with path.open("a") as file:
        file.write("cut sho")
    append_line(path, "two")
    assert path.read_text() == "one\ncut sho\ntwo\n"
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:2]))  # a full disk
    with pytest.raises(OSError, match="No space left"):
        append_line(path, "three")
    assert path.read_text() == "one\ncut sho\ntwo\n"


def test_pictures_that_take_long_are_bounded_and_the_page_goes_on_answering(serve, ask):
    from l2p.review.demo import WAITING, DemoModels, DrawRequest

    release = threading.Event()

    class Slow(DemoModels):
        def __init__(self):
            self._lock, self._places = threading.Lock(), threading.BoundedSemaphore(WAITING)

        def _paint(self, wish: DrawRequest):
            release.wait(30)
            raise UserError("drawn")

    port = serve(demo_app(Slow()))
    wish = {"prompt": "a lake", "seed": 7, "height": 32, "width": 48, "path": "l2p"}
    answers: list[tuple] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(port, "POST", "/api/draw", wish)), daemon=True)
        for _ in range(60)
    ]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + 30
    while len(answers) < 60 - WAITING and time.monotonic() < limit:
        time.sleep(0.02)
    assert len(answers) == 60 - WAITING and all(b"try again" in data for _, _, data in answers)
    assert ask(port, "GET", "/")[0] == 200
    release.set()
    for thread in threads:
        thread.join(30)
    assert sum(b"drawn" in data for _, _, data in answers) == WAITING


def test_two_reviewers_at_once_lose_nothing(port, ask, review_folder):
    def judge(name: str) -> None:
        for pair in ("0000", "0001", "0002", "0003"):
            assert ask(port, "POST", "/api/answer", {**GIVEN, "pair": pair}, reviewer=name)[0] == 200

    names = ["Ann", "Bob", "Ann\u2028Lee", "x'; DROP TABLE"]
    threads = [threading.Thread(target=judge, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = Answers(review_folder / "answers").all()
    assert {name: len(answers) for name, answers in found.items()} == dict.fromkeys(names, 4)


def test_the_number_of_reviewers_and_of_their_answers_is_bounded(review_folder, monkeypatch):
    from l2p.review import answers as module

    answers = Answers(review_folder / "answers")
    monkeypatch.setattr(module, "MAX_REVIEWERS", 3)
    for name in "abc":
        answers.add(name, Answer("0000", "a", "b"))
    with pytest.raises(UserError, match="3 reviewers already"):
        answers.add("d", Answer("0000", "a", "b"))
    monkeypatch.setattr(module, "MAX_BYTES", 200)
    with pytest.raises(UserError, match="too often"):
        for _ in range(10):
            answers.add("a", Answer("0000", "a", "b"))


SERVER = """
import sys, uvicorn
from l2p.review.pairs import read_review
from l2p.review.server import review_app
uvicorn.run(review_app(read_review(sys.argv[1]), sys.argv[1]), port=int(sys.argv[2]), log_level="critical")
"""


def test_a_kill_in_the_middle_of_answers_loses_none_that_was_acknowledged(review_folder, ask):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(review_folder), str(port)])
    acknowledged: list[tuple[str, str]] = []

    def judge(name: str) -> None:
        for number in range(10_000):
            choice = ("left", "right", "tie")[number % 3]
            try:
                status, *_ = ask(port, "POST", "/api/answer", {**GIVEN, "follows": choice}, reviewer=name)
            except (OSError, EOFError, ValueError):
                return
            except Exception as error:  # http.client's own, of a connection cut short
                assert type(error).__module__ == "http.client", error
                return
            assert status == 200
            acknowledged.append((name, choice))

    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        try:
            if ask(port, "GET", "/")[0] == 200:
                break
        except OSError:
            time.sleep(0.05)
    threads = [threading.Thread(target=judge, args=(f"reviewer {i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 60 and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for thread in threads:
        thread.join(60)
    assert len(acknowledged) >= 60
    for i in range(3):
        lines = Answers(review_folder / "answers")._path(f"reviewer {i}").read_text().splitlines()
        assert len(lines) >= sum(name == f"reviewer {i}" for name, _ in acknowledged)
        assert all(json.loads(line)["reviewer"] == f"reviewer {i}" for line in lines[:-1])


def test_an_answer_is_on_the_disk_before_it_is_acknowledged(review_folder, monkeypatch):
    """The file's content, and at its first line its name in the folder too."""
    synced, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((os.path.basename(path), os.path.getsize(path)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    answers = Answers(review_folder / "answers")
    answers.add("Ann", Answer("0000", "a", "b"))
    name, size = synced[0]
    assert name.startswith("ann-") and size > 0 and synced[1][0] == "answers" and len(synced) == 2
    answers.add("Ann", Answer("0001", "a", "b"))
    assert synced[2][0] == name and synced[2][1] > size


@pytest.mark.parametrize("host", ["", " ", "no.such.host.invalid", "1.2.3.4.5", "\ud800", "a" * 300])
def test_an_empty_or_unknown_host_is_refused_before_anything_is_drawn(l2p, tmp_path, host, monkeypatch):
    from l2p.review import pairs

    monkeypatch.setattr(pairs, "prepare", lambda *_, **__: pytest.fail("pictures were drawn first"))
    code, _, err = l2p("review", tmp_path, "--against", tmp_path, "--host", host, "--out", tmp_path / "out")
    named = (
        "no UTF-8" if host == "\ud800" else "--host"
    )  # broken arguments are refused before any option is read
    assert code == 2 and named in err and err.count("\n") == 1
    assert l2p("demo", "landscapes-128", "--host", host)[0] == 2
    assert not (tmp_path / "out").exists()


def test_a_name_that_a_strangers_dns_resolves_is_never_our_own():
    assert is_own_name("127.0.0.1", "127.0.0.1") and is_own_name("LOCALHOST", "127.0.0.1")
    assert is_own_name("::1", "::1") and not is_own_name("192.168.0.1", "127.0.0.1")
    assert is_own_name("192.168.0.1", "0.0.0.0") and is_own_name(socket.gethostname(), "0.0.0.0")
    for bound in ("127.0.0.1", "0.0.0.0", "::", "192.168.0.1"):
        assert not is_own_name("evil.example", bound) and not is_own_name("", bound)


def test_servers_listen_on_this_machine_alone_unless_told():
    import argparse

    from l2p.cli.review import add_address

    parser = argparse.ArgumentParser()
    add_address(parser)
    assert parser.parse_args([]).host == "127.0.0.1"
