"""A language model that writes prompts anew, behind any endpoint that speaks OpenAI's chat completions.

The key is read from the environment, sent to that endpoint and to no other (redirects are refused), and stands in no
file, no message and no traceback of ours. Answers are kept as they come, so that a kill pays for nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException, IncompleteRead
from pathlib import Path

from l2p.errors import UserError
from l2p.files import append_line, write_text
from l2p.keys import check_endpoint, mask
from l2p.net import handlers_within
from l2p.recipe import LLMConfig
from l2p.terminal import say

TRIES = 5
MOST_BYTES = 16 * 2**20  # of an answer
BUSY = (408, 409, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0  # seconds between two tries
INSTRUCTION = (
    "You write prompts for a text-to-image model. For every line you are given, write one prompt of one to three "
    "sentences that shows the same subject with concrete, visible detail: what stands where, materials, light, "
    "colours, point of view. No names of artists or brands, no words about quality. Answer with a JSON array of "
    "strings, as many as there were lines, in their order, and nothing else."
)


class Writer:
    """Asks the model and remembers its answers.

    Args:
        config: endpoint, model, and what to ask.
        memory: JSON lines of answers, one a request; made where there is none.

    Raises:
        UserError: the endpoint is no address, or would show a password.
    """

    def __init__(self, config: LLMConfig, memory: Path) -> None:
        check_endpoint(config.base_url, config.key_env)
        self.config, self.memory = config, memory
        self._key = os.environ.get(config.key_env, "").strip()
        if not all("!" <= c <= "~" for c in self._key):  # it would be printed as a header that is none
            raise UserError(
                f"the environment's {config.key_env} holds a line break, a space or another character that is in no key: "
                "set it anew"
            )
        self._answers = _remembered(memory)

    def rewrite(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt as the model writes it; the order is kept. An answer may hold fewer prompts than it was asked for.

        Raises:
            UserError: the endpoint refuses, cannot be reached, or answers with something else; what came before is kept.
        """
        step = self.config.prompts_per_request
        parts = [list(prompts[i : i + step]) for i in range(0, len(prompts), step)]
        with ThreadPoolExecutor(self.config.parallel) as pool:
            asked = [
                pool.submit(self._ask, part)
                for part in parts
                if _name(self.config, part) not in self._answers
            ]
            failed: BaseException | None = None
            for answer in as_completed(asked):
                if answer.cancelled():
                    continue
                if (error := answer.exception()) is None:
                    self._keep(*answer.result())  # also after a failure: it is paid for
                elif failed is None:
                    failed = error
                    for other in asked:
                        other.cancel()
        if failed is not None:
            raise failed
        return [text for part in parts for text in self._answers[_name(self.config, part)]]

    def _keep(self, name: str, texts: list[str]) -> None:
        self._answers[name] = texts
        append_line(self.memory, json.dumps({"request": name, "prompts": texts}, ensure_ascii=False))

    def _ask(self, part: list[str]) -> tuple[str, list[str]]:
        config = self.config
        body = {
            "model": config.model,
            "temperature": config.temperature,
            "messages": [
                {"role": "system", "content": config.instruction or INSTRUCTION},
                {"role": "user", "content": "\n".join(part)},
            ],
        }
        answer = self._post("/chat/completions", body)
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
            texts = parse(text)[: len(part)]
            # half a surrogate, which JSON may hold, would be written to no file: the answer is paid for
            return _name(config, part), [t.encode("utf-8", "replace").decode() for t in texts]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            said = self._masked(answer[:2000].decode(errors="replace"))
            raise UserError(f"{config.base_url} answered with no chat completion: {said[:200]}") from None

    def _post(self, path: str, body: dict) -> bytes:
        """The answer to a request, which is repeated while the endpoint is busy."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        url = self.config.base_url.rstrip("/") + path
        for attempt in range(TRIES):
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            try:
                return self._read(request)
            except urllib.error.HTTPError as error:
                line = self._explain(error)
                again, asked = error.code in BUSY, error.headers.get("Retry-After", "")
            except (OSError, ValueError, HTTPException) as error:  # no connection, a broken one, or no HTTP
                reason = getattr(error, "reason", error)
                said = self._masked(str(reason) or type(error).__name__)[:200]
                line = f"{self.config.base_url} cannot be reached ({' '.join(said.split())})"
                again, asked = not isinstance(error, ValueError), ""
            if not again or attempt == TRIES - 1:
                raise UserError(line) from None
            wait = min(LONGEST_WAIT, float(asked) if asked.isdecimal() else 2.0**attempt)
            say(f"{line}; waiting {wait:.0f} s, then try {attempt + 2} of {TRIES}")
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _read(self, request: urllib.request.Request) -> bytes:
        """The body of an answer. Raises UserError for one that is too large, OSError or HTTPException for a broken one."""
        opener = urllib.request.build_opener(_NoRedirect, *handlers_within(self.config.timeout))
        with opener.open(request, timeout=self.config.timeout) as response:
            data = response.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise UserError(f"{self.config.base_url} answered with more than {MOST_BYTES // 2**20} MiB")
            if response.length:
                raise IncompleteRead(data, response.length)
            return data

    def _explain(self, error: urllib.error.HTTPError) -> str:
        config = self.config
        if error.code in (401, 403):
            key = "does not take the key in" if self._key else "wants a key: put one into"
            return f"{config.base_url} {key} the environment's {config.key_env} ({error.code})"
        try:
            said = " ".join(self._masked(error.read(2000).decode(errors="replace")).split())
        except (OSError, HTTPException):
            said = "and its reason was cut short"
        return f"{config.base_url} refused {config.model} ({error.code}): {said[:200]}"

    def _masked(self, text: str) -> str:
        """`text` without the key, should the other side repeat it."""
        return mask(text.replace(self._key, "***") if self._key else text)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would carry the key along to wherever it is sent."""

    def redirect_request(self, *_: object) -> None:
        return None


def parse(answer: str) -> list[str]:
    """The prompts in a model's answer: a JSON array of strings, fenced or not, or else one a line."""
    text = answer.strip()
    if fenced := re.fullmatch(r"```\w*\s*(.*?)\s*```", text, re.DOTALL):
        text = fenced[1]
    try:
        found = json.loads(text)
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return [item.strip() for item in found if item.strip()]
    except (json.JSONDecodeError, RecursionError):
        found = None  # lines, then
    lines = (
        re.sub(r"^\s*(?:[-*\u2022]|\d+[.)])\s+", "", line).strip().strip('"') for line in text.split("\n")
    )
    return [line for line in lines if line]


def _name(config: LLMConfig, part: Sequence[str]) -> str:
    """What a request is remembered by: everything that shapes its answer."""
    asked = [config.base_url, config.model, config.temperature, config.instruction or INSTRUCTION, list(part)]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def _remembered(memory: Path) -> dict[str, list[str]]:
    """Answers of earlier runs; a last line that a kill cut short is taken off."""
    if not memory.is_file():
        return {}
    whole, _, rest = memory.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    if rest:
        write_text(memory, whole + "\n" if whole else "")
    try:
        rows = [json.loads(line) for line in whole.split("\n") if line]
        return {row["request"]: row["prompts"] for row in rows}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{memory} is damaged ({error}): delete it, and its prompts are asked for again"
        ) from None
