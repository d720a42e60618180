"""Servers that mean no good, and what of their words, and of keys, reaches a terminal or a file."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time

import pytest

from l2p import net
from l2p.cli import main as cli
from l2p.corpus import llm
from l2p.corpus.llm import Writer
from l2p.errors import UserError, UserNotice, printable
from l2p.keys import holds_key, mask
from l2p.recipe import LLMConfig, load_recipe
from l2p.terminal import CleanStream, clean_streams, say

OK = b"HTTP/1.1 200 OK\r\n"
ESCAPE = "\x1b]0;owned\x07\x9b2J\u202e\x7f"


def answer(content: object) -> bytes:
    body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


def raw(text: str) -> list[str]:
    return [c for c in text if not c.isprintable() and c not in "\n\t"]


@pytest.fixture
def endpoint(tmp_path, monkeypatch):
    """``endpoint(*replies, **config) -> Writer`` on a server that gives each request the next of these bytes, or calls one with
    the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(llm.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-planted-planted")

    def serve(replies) -> None:
        for reply in replies:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                data, length = b"", 0
                while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < length:
                    data += connection.recv(65536)
                    length = int(data.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or 0)
                try:
                    reply(connection) if callable(reply) else connection.sendall(reply)
                except OSError:
                    pass  # the client has had enough

    def start(*replies, **config) -> Writer:
        threading.Thread(target=serve, args=(replies,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        return Writer(
            LLMConfig(url, "m", parallel=1, **{"timeout": 5.0, **config}), tmp_path / "answers.jsonl"
        )

    yield start
    listener.close()


BROKEN = {
    "cut short": OK + b"Content-Length: 100\r\n\r\nabc",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "a bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "too many headers": OK + b"A: b\r\n" * 200 + b"\r\n",
    "a long line": OK + b"A: " + b"b" * 70_000 + b"\r\n\r\n",
    "nothing": b"",
    "escapes": b"HTTP/1.1 503 \x1b[31m\r\nContent-Length: 20\r\n\r\n" + ESCAPE.encode().ljust(20),
    "half an error": b"HTTP/1.1 503 no\r\nTransfer-Encoding: chunked\r\n\r\nzz",
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
def test_a_broken_answer_is_asked_for_again_and_is_a_line(endpoint, capsys, reply):
    assert endpoint(reply, answer('["a lake"]')).rewrite(["x"]) == ["a lake"]
    said = capsys.readouterr().err
    assert "try 2 of 5" in said and said.count("\n") == 1 and raw(said) == []


@pytest.mark.parametrize("content", ["[" * 100_000, None, [1], {"a": 1}, 5], ids=lambda c: str(c)[:9])
def test_an_answer_of_another_shape_is_a_line_or_lines(endpoint, content):
    try:
        assert all(isinstance(text, str) for text in endpoint(answer(content)).rewrite(["x"]))
    except UserError as error:
        assert "no chat completion" in str(error) and "\n" not in str(error)
    deep = b"[" * 200_000
    with pytest.raises(UserError, match="no chat completion"):
        endpoint(OK + b"Content-Length: %d\r\n\r\n" % len(deep) + deep).rewrite(["y"])


def test_half_a_surrogate_does_not_lose_a_paid_answer(endpoint):
    assert endpoint(answer('["a \\ud800 lake"]')).rewrite(["x"]) == ["a ? lake"]
    assert endpoint().rewrite(["x"]) == ["a ? lake"]  # from the file


def test_an_answer_is_bounded_in_size(endpoint, monkeypatch):
    monkeypatch.setattr(llm, "MOST_BYTES", 2**20)

    def endless(connection: socket.socket) -> None:
        connection.sendall(OK + b"\r\n")
        for _ in range(10_000):
            connection.sendall(b" " * 2**16)

    start = time.monotonic()
    for reply in (endless, OK + b"Content-Length: 99999999999\r\n\r\n" + b" " * (2**20 + 1)):
        with pytest.raises(UserError, match="more than 1 MiB"):
            endpoint(reply).rewrite(["x"])
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("start", [OK, OK + b"\r\n"], ids=["headers", "body"])
def test_an_answer_is_bounded_in_time_whatever_drips(endpoint, monkeypatch, start):
    monkeypatch.setattr(llm, "TRIES", 1)

    def drip(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(100):
            connection.sendall(b" ")
            threading.Event().wait(0.05)  # time.sleep is a fake here

    begun = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached"):
        endpoint(drip, timeout=1.0).rewrite(["x"])
    assert time.monotonic() - begun < 3
    assert net.handlers_within(1.0)[1].https_open  # TLS takes the same way


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_carries_the_key_along(endpoint, status):
    elsewhere = b"HTTP/1.1 %d Moved\r\nLocation: http://127.0.0.1:9/v1\r\nContent-Length: 0\r\n\r\n" % status
    with pytest.raises(UserError, match=rf"refused m \({status}\)"):
        endpoint(elsewhere).rewrite(["x"])


SECRETS = [
    "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SECRETabcdefgh",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SECRETabcdefgh",
    "Bearer ya29.a0AfH6SMBx/SECRET+def=",
    "ya29.a0AfH6SMBxSECRET",
    "token=SECRET6789abcdef0123456789abcdef01234567",
    "https://user:SECRET2pass@host/x",
    "https://SECRET@host/x",
    "xoxb-123456789012-SECRETefghijkl",
    "Basic dXNlcjpodW5SECRETyMnBhc3M=",
    "{'api_key': 'SECRETabc'}",
    '"password": "SECRETabc"',
    "OPENAI_API_KEY=SECRETabc",
    "client_secret=SECRETabc",
    "access_token: SECRETabc1",
    "Authorization: SECRETabc1",
    "?token=SECRETabc&x=1",
]


@pytest.mark.parametrize("text", SECRETS)
def test_what_is_a_key_by_its_shape_or_by_its_name_is_masked(text):
    assert "SECRET" not in mask(f"the request failed ({text}) twice") and "***" in mask(text)
    assert "SECRET" not in mask(json.dumps({"error": text})).replace("***", "")


def test_honest_texts_are_not_masked():
    for text in (
        "password: expected a text, the token: make one that may write, a secret: nobody knows",
        "Basic understanding of num_tokens=123456 and pad_token: <|endoftext|>",
        '{"eos_token": "<|im_end|>", "tokenizer": "l2p-tokenizer", "vocab": {"password": 8422, "token": 5263}}',
        "corpus.llm.key_env=OPENAI_API_KEY https://host/a@b mail me@example.org",
        "runs/eyJ tokens: 123456 key=value sha256=0123456789abcdef0123456789abcdef",
    ):
        assert mask(text) == text and not holds_key(text)


@pytest.mark.parametrize(
    "line",
    [
        "corpus: {quality: {scorer: s, options: {api_key: abc}}}",
        "corpus: {quality: {scorer: s, options: {a: [{Authorization: abc}]}}}",
        "corpus: {quality: {scorer: s, options: {x: eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefgh}}}",
        "logging: {wandb_project: 'https://me:swordfish@host/x'}",
    ],
)
def test_a_recipe_that_holds_a_key_is_refused_before_it_is_kept(l2p, tmp_path, line):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: x\noutput_dir: {tmp_path / 'out'}\n{line}\n")
    code, out, err = l2p("distill", path, "--dry-run")
    assert code == 2 and "holds what looks like a key" in err and err.count("\n") == 1
    assert not any(part in out + err for part in ("abc", "swordfish")) and not (tmp_path / "out").exists()
    path.write_text("name: x\ncorpus: {quality: {scorer: s, options: {max_tokens: 5, weights: a/b}}}\n")
    assert load_recipe(path).corpus.quality.options["max_tokens"] == 5


@pytest.mark.parametrize("file", ["recipe.yaml", "config.json", "README.md", "metrics.json"])
def test_nothing_that_holds_a_key_is_published(tmp_path, file):
    from l2p.hub.stage import _refuse_tokens

    (tmp_path / "tokenizer.json").write_text(
        '{"eos_token": "<|im_end|>", "vocab": {"sk-learn": 3, "Basic": 4}}'
    )
    _refuse_tokens(tmp_path)
    (tmp_path / file).write_text('{"options": {"api_key": "swordfish"}}')
    with pytest.raises(UserError, match=f"{file} holds what looks like a token") as caught:
        _refuse_tokens(tmp_path)
    assert "swordfish" not in str(caught.value)


HOSTILE = f"{ESCAPE} hf_abcdefghijklmnopqrstuvwxyz"


def hidden(text: str) -> bool:
    return raw(text) == [] and "hf_abc" not in text and "hf_***" in text


def test_every_way_to_the_terminal_is_clean(capsys, tmp_path):
    from l2p.console import Console

    def stdlib_log() -> None:
        handler = logging.StreamHandler()
        logging.getLogger("transformers.x").addHandler(handler)
        try:
            logging.getLogger("transformers.x").error(HOSTILE)
        finally:
            logging.getLogger("transformers.x").removeHandler(handler)

    ways = {
        "print": lambda: print(HOSTILE),
        "stderr": lambda: sys.stderr.writelines([HOSTILE]),
        "logging": stdlib_log,
        "rich": lambda: Console().print(HOSTILE, markup=False),
        "a rich table on stderr": lambda: Console(stderr=True).print(HOSTILE),
        "json": lambda: print(json.dumps({"a": HOSTILE}, ensure_ascii=False)),
    }
    for name, write in ways.items():
        with clean_streams():
            write()
        assert hidden("".join(capsys.readouterr())), name
    say(HOSTILE)  # also where Python calls us, and not the command
    assert hidden(capsys.readouterr().err)
    with clean_streams():
        print(json.dumps({"a": ESCAPE + "\U000e0041ä"}, ensure_ascii=False))
    assert json.loads(capsys.readouterr().out) == {
        "a": ESCAPE + "\U000e0041ä"
    }  # still JSON, of the same text


def test_our_own_colours_and_bars_stay(capsys):
    from l2p.console import Console

    with clean_streams():
        Console(force_terminal=True, color_system="standard").print("a [red]b[/red]")
        sys.stderr.write("\r 50% of it")
        sys.stderr.write("\n\n\x1b[A\x1b[A")
        assert isinstance(sys.stdout, CleanStream) and sys.stdout.isatty() is False
    out, err = capsys.readouterr()
    assert "\x1b[31mb" in out and err == "\r 50% of it\n\n\x1b[A\x1b[A"
    assert printable("ä 日本 \t\n") == "ä 日本 \t\n" and not isinstance(sys.stdout, CleanStream)


def test_warnings_errors_and_tracebacks_of_the_command_are_clean(l2p, capsys, monkeypatch):
    for kind in (UserNotice, RuntimeWarning):
        assert hidden(cli._format_warning(kind(HOSTILE), kind, "f.py", 3))
    assert hidden(l2p("recipes", HOSTILE)[2])
    monkeypatch.setenv("L2P_DEBUG", "1")
    with pytest.raises(UserError) as caught:
        l2p("recipes", HOSTILE)
    sys.excepthook(caught.type, caught.value, caught.tb)
    trace = capsys.readouterr().err
    assert "Traceback" in trace and hidden(trace)


def test_masking_takes_time_in_proportion_to_the_text():
    for part in ("a", "-eyJ", "token:", "x://", "Bearer ", "Basic a", "api_key", "token ", "://a@"):
        start = time.process_time()
        mask(part * (2**17 // len(part)))
        assert time.process_time() - start < 2, part


def test_a_strangers_picture_says_nothing_to_the_terminal(tmp_path, capsys):
    import numpy as np

    from l2p.artifacts import reusable
    from l2p.images import save_png

    save_png(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.png", {"prompt": HOSTILE, "sha256": 1})
    assert not reusable(tmp_path / "a.png", {"prompt": "b", "sha256": 1})
    said = capsys.readouterr().err
    assert "is made anew" in said and raw(said) == [] and "hf_abc" not in said
