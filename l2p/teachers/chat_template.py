"""Chat templates of strangers, rendered in a process of their own with bounded time, memory and output.

A tokenizer's chat template is a program in Jinja. transformers renders it in Jinja's sandbox, which keeps it from Python's
objects but not from running for years (nested loops) or filling the memory (``'x' * 10**10``). So every template but the
one of the bundled teacher is rendered by a small process that imports Jinja alone.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from l2p.errors import UserError

TOTAL_SECONDS = 30.0  # for the prompts of one call
SECONDS = 10.0  # for one prompt; honest templates take less than a thousandth of it
MEMORY = 512 * 2**20
MAX_OUTPUT = 2**20  # characters of one prompt, and, beside eight times the prompts' own, of those of one call
LANDSCAPES_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# The environment of transformers' chat templates: the same sandbox, whitespace rules, functions and tags.
WORKER = """
import json, resource, sys
from datetime import datetime
from functools import lru_cache
import jinja2, jinja2.ext, jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

memory, most = int(sys.argv[1]), int(sys.argv[2])
for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
    try:
        resource.setrlimit(limit, (value, value))
    except (ValueError, OSError):
        pass  # a system that knows no such limit

class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)
    def _inside(self, caller):
        return caller()

def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)

def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

env = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
env.filters["tojson"] = tojson
env.globals.update(raise_exception=raise_exception, strftime_now=lambda f: datetime.now().strftime(f))
compiled = lru_cache(4)(env.from_string)

for line in sys.stdin:
    request = json.loads(line)
    try:
        parts, length = [], 0
        for part in compiled(request["template"]).generate(**request["context"]):
            parts.append(part)
            length += len(part)
            if length > most:
                raise ValueError(f"it writes more than {most} characters")
        answer = {"text": "".join(parts)}
    except MemoryError:
        parts = None
        answer = {"error": "it takes too much memory"}
    except RecursionError:
        answer = {"error": "it calls itself without end"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(answer), flush=True)
"""


class _Budget(threading.local):
    """What is left to the templates of a call; without limit outside of one."""

    end, characters = math.inf, math.inf


_left = _Budget()


@contextmanager
def one_call(prompts: Sequence[str]) -> Iterator[None]:
    """Within, templates share one budget of time and characters: a template near its own limits would take hours for many
    prompts, and their tokenizer gigabytes."""
    before = _left.end, _left.characters
    _left.end = min(before[0], time.monotonic() + TOTAL_SECONDS)
    _left.characters = min(before[1], MAX_OUTPUT + 8 * sum(map(len, prompts)))
    try:
        yield
    finally:
        _left.end, _left.characters = before


class _Worker:
    """The process; started when first needed, and anew after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner, self._lock = 0, threading.Lock()

    def render(self, template: str, context: dict[str, Any]) -> str:
        """The text of a template. Raises UserError where it fails or exceeds a limit."""
        request = json.dumps({"template": template, "context": context}, default=str)
        with self._lock:
            try:
                line = self._ask(request.encode() + b"\n")
            except (TimeoutError, OSError):
                self.close()
                raise UserError(
                    f"the tokenizer's chat template was stopped: it took more than {SECONDS:g} s or "
                    f"{MEMORY // 2**20} MiB for one prompt, or {TOTAL_SECONDS:g} s for those of one call"
                ) from None
            except BaseException:  # Ctrl-C: an answer of this request must not be taken for the next one's
                self.close()
                raise
        answer = json.loads(line)
        if "error" not in answer:
            _left.characters -= len(answer["text"])
            if _left.characters < 0:
                raise UserError(
                    "the tokenizer's chat template writes far more than it is given: its texts are too long"
                )
        if "error" in answer:
            raise UserError(f"the tokenizer's chat template cannot be rendered: {answer['error']}")
        return answer["text"]

    def _ask(self, request: bytes) -> bytes:
        process = self._running()
        process.stdin.write(request)
        process.stdin.flush()
        end, answer = min(_left.end, time.monotonic() + SECONDS), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError
                part = os.read(process.stdout.fileno(), 2**16)
                if not part or len(answer) > 16 * MAX_OUTPUT:
                    raise OSError("the process has ended")
                answer += part
        return bytes(answer)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # a fork must not speak with its parent's process
            self._process, self._owner = None, os.getpid()
        if self._process is None or self._process.poll() is not None:
            pipe, command = (
                subprocess.PIPE,
                [sys.executable, "-I", "-c", WORKER, str(MEMORY), str(MAX_OUTPUT)],
            )
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env={}, bufsize=0
            )
        return self._process

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            self._process.stdin.close(), self._process.stdout.close()
        self._process = None


_worker = _Worker()
atexit.register(_worker.close)


class BoundedTemplate:
    """What transformers takes for a compiled template."""

    def __init__(self, source: str) -> None:
        self.source = source

    def render(self, **context: Any) -> str:
        return _worker.render(self.source, context)


def bound_chat_templates() -> None:
    """From now on transformers renders chat templates within the limits, also those that diffusers' pipelines ask for."""
    from transformers.utils import chat_template_utils

    unbounded = chat_template_utils._compile_jinja_template
    if getattr(unbounded, "is_bounded", False):
        return

    def compile_template(source: str) -> Any:
        return unbounded(source) if source == LANDSCAPES_TEMPLATE else BoundedTemplate(source)

    compile_template.is_bounded = True
    chat_template_utils._compile_jinja_template = compile_template
