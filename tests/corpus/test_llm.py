"""The client of language models against a server of our own on this machine."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from l2p.corpus import llm
from l2p.errors import UserError
from l2p.recipe import LLMConfig

KEY = "sk-secret-secret-secret"


class Fake(ThreadingHTTPServer):
    """Answers each line with "LINE, in detail"; `faults` are what the next requests get instead: status, body, headers."""

    def __init__(self):
        self.requests, self.faults, self.lock = [], [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Quiet."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            status, text, headers = self.server.faults.pop(0) if self.server.faults else (200, None, {})
        if text is None:
            lines = body["messages"][1]["content"].splitlines()
            text = json.dumps([f"{line}, in detail" for line in lines])
            text = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST


@pytest.fixture
def server(monkeypatch):
    fake = Fake()
    fake.waits = []
    monkeypatch.setattr(llm.time, "sleep", fake.waits.append)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield fake
    fake.shutdown()
    fake.server_close()


@pytest.fixture
def writer(server, tmp_path):
    def writer(**config):
        wanted = {"base_url": server.url, "model": "small", "prompts_per_request": 2, "parallel": 1} | config
        return llm.Writer(LLMConfig(**wanted), tmp_path / "answers.jsonl")

    return writer


def said(content):
    return json.dumps({"choices": [{"message": {"content": content}}]})


def test_prompts_come_back_in_their_order_and_the_request_is_a_chat_completion(server, writer):
    prompts = [f"a barn {i}" for i in range(7)]
    assert writer(parallel=3).rewrite(prompts) == [f"{prompt}, in detail" for prompt in prompts]
    assert len(server.requests) == 4
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "small" and body["temperature"] == 1.0
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_what_was_answered_is_never_asked_again_even_after_a_torn_line(server, writer, tmp_path):
    server.faults = [(200, None, {}), (400, "no", {})]
    with pytest.raises(UserError, match=r"refused small \(400\): no"):
        writer().rewrite(["a", "b", "c", "d"])
    memory = tmp_path / "answers.jsonl"
    with memory.open("a") as file:
        file.write('{"request": "cut sho')  # a kill in the middle of a line
    assert writer().rewrite(["a", "b", "c", "d"]) == [f"{x}, in detail" for x in "abcd"]
    assert [body["messages"][1]["content"] for _, _, body in server.requests] == ["a\nb", "c\nd", "c\nd"]
    assert len(memory.read_text().splitlines()) == 2
    writer(model="large").rewrite(["a", "b"])  # another model is another answer
    assert len(server.requests) == 4


def test_a_busy_endpoint_is_asked_again_after_as_long_as_it_says(server, writer, capsys):
    server.faults = [(429, "slow down", {"Retry-After": "7"}), (503, "", {}), (200, None, {})]
    assert writer().rewrite(["a"]) == ["a, in detail"]
    assert server.waits == [7.0, 2.0]
    assert "waiting 7 s, then try 2 of 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            (401, f"Incorrect API key provided: {KEY}", {}),
            "does not take the key in the environment's OPENAI_API_KEY",
        ),
        ((404, f"no model small for {KEY}", {}), r"refused small \(404\): no model small for \*\*\*"),
        ((200, f'{{"error": "{KEY}"}}', {}), r"answered with no chat completion: .*\*\*\*"),
        ((307, "", {"Location": "http://127.0.0.1:9/v1/chat/completions"}), r"refused small \(307\)"),
    ],
)
def test_a_refusal_is_one_line_and_the_key_is_in_none(server, writer, tmp_path, capsys, fault, message):
    server.faults = [fault]
    with pytest.raises(UserError, match=message) as error:
        writer().rewrite(["a"])
    assert "\n" not in str(error.value) and KEY not in str(error.value)
    assert error.value.__cause__ is None and KEY not in "".join(capsys.readouterr())
    assert not any(KEY in path.read_text() for path in tmp_path.iterdir())


def test_the_key_is_never_written(server, writer, tmp_path):
    writer().rewrite(["a"])
    assert KEY not in (tmp_path / "answers.jsonl").read_text()


def test_without_a_key_none_is_sent(server, writer, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    writer().rewrite(["a"])
    assert "Authorization" not in server.requests[0][1]
    server.faults = [(401, "", {})]
    with pytest.raises(UserError, match="wants a key: put one into the environment's OPENAI_API_KEY"):
        writer().rewrite(["b"])


def test_an_endpoint_that_is_not_there(writer, server):
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1 cannot be reached \(.*refused"):
        writer(base_url="http://127.0.0.1:9/v1").rewrite(["a"])
    assert server.waits == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    "url", ["host/v1", "file:///etc/passwd", "https://me:pw@host/v1", "https://host/v1?key=pw"]
)
def test_an_address_that_is_none_or_shows_a_secret(writer, url):
    with pytest.raises(UserError, match="corpus.llm.base_url") as error:
        writer(base_url=url)
    assert "pw" not in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        '["a barn", "a lake"]',
        '```json\n["a barn", "a lake"]\n```',
        '1. "a barn"\n2) a lake\n',
        "- a barn\n\n* a lake",
    ],
)
def test_answers_are_read_as_models_write_them(answer):
    assert llm.parse(answer) == ["a barn", "a lake"]


def test_more_prompts_than_asked_for_are_cut_and_fewer_are_taken(server, writer):
    server.faults = [(200, said('["a", "b", "c", "d"]'), {}), (200, said('["e"]'), {})]
    assert writer().rewrite(["1", "2", "3", "4"]) == ["a", "b", "e"]


def test_an_answer_with_a_line_separator_is_remembered(tmp_path):
    """U+2028 and U+0085 end no line of the memory."""
    from l2p.corpus.llm import _remembered

    row = {"request": "r", "prompts": ["a lake\u2028at dusk", "b\u0085c"]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert _remembered(tmp_path / "m.jsonl") == {"r": row["prompts"]}
