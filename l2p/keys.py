"""Keys and tokens: what looks like one is masked in every line, and refused where the name of a variable is expected."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from l2p.errors import UserError

# The beginnings that services give their keys, so that they can be found where they should not be.
KEY = re.compile(
    r"(?<![A-Za-z0-9])(?P<kind>hf_|sk-|sk_|gsk_|xai-|nvapi-|r8_|ghp_|gho_|ghu_|ghs_|github_pat_|glpat-|npm_|AKIA|ASIA|AIza|"
    r"GOCSPX-|1//0|ya29\.|xox[a-z]-|eyJ(?=[A-Za-z0-9_\-]{4,500}\.)|Bearer\s+|Basic\s+(?=[A-Za-z+/]*[0-9+/=]))"
    r"[A-Za-z0-9_\-.+/=]{12,}"
)
_SECRET = (
    r"(?:[A-Za-z0-9_\-]*(?:api[_\-]?key|access[_\-]?key|private[_\-]?key|secret|password|passwd|authorization|credentials?)|"
    r"(?:(?:hf|hub|access|auth|api|bearer|refresh|id|session|github|gitlab|wandb|user)[_\-])?token)"
)
SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)
# NAME=value, NAME: "value", and NAME: value where the value is no word of a sentence
_QUOTE = r"(?:\\*[\"'])"
_NAMED = re.compile(
    rf"(?P<kind>(?<![A-Za-z0-9_\-]){_QUOTE}?{_SECRET}{_QUOTE}?\s*(?:={_QUOTE}?|:\s*{_QUOTE}|:\s*(?=[^\s\"']{{0,200}}[0-9])))"
    r"(?![<\[])[^\s\"'&,;<>(){}\[\]\\]{6,}",
    re.IGNORECASE,
)
_IN_ADDRESS = re.compile(r"(?P<kind>(?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]*://)[^\s/@\"']+(?=@)")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def mask(text: object) -> str:
    """`text` without anything that looks like a key, is called one, or is a password in an address."""
    found = str(text)
    for pattern in (KEY, _IN_ADDRESS, _NAMED):
        found = pattern.sub(lambda match: f"{match['kind']}***", found)
    return found


def holds_key(text: str) -> bool:
    """Whether a text holds what :func:`mask` would hide."""
    return mask(text) != text


def looks_like_key(text: str) -> bool:
    """Whether a text is rather a key than a variable's name."""
    if KEY.search(text) or not NAME.fullmatch(text):
        return True
    kinds = [any(map(test, text)) for test in (str.islower, str.isupper, str.isdigit)]
    long_word = max(map(len, text.split("_"))) >= 16
    return long_word and sum(kinds) >= 2  # letters of both kinds, or letters and digits, without a break


ENDPOINTS = {  # the name that each service's own clients read its key from
    "api.openai.com": "OPENAI_API_KEY",
    "openrouter.ai": "OPENROUTER_API_KEY",
    "api.groq.com": "GROQ_API_KEY",
    "api.mistral.ai": "MISTRAL_API_KEY",
    "api.together.xyz": "TOGETHER_API_KEY",
    "api.deepseek.com": "DEEPSEEK_API_KEY",
}


def known_endpoint(base_url: str, key_env: str) -> bool:
    """Whether a recipe may name this address without its user's own word: a service with its own key, over TLS, or this
    machine with the key that is meant for endpoints of language models."""
    url = urlsplit(base_url)
    host = (url.hostname or "").lower()
    if host in ENDPOINTS:
        return url.scheme == "https" and url.port in (None, 443) and key_env == ENDPOINTS[host]
    try:
        local = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        local = False
    return local and key_env == "OPENAI_API_KEY"


def check_endpoint(base_url: str, key_env: str) -> None:
    """Raises UserError, which repeats neither, for an address with a password and for a key in place of its variable's name."""
    if looks_like_key(key_env):
        raise UserError(
            "corpus.llm.key_env holds no name of an environment variable, perhaps the key itself: put the key into the "
            "environment, as in `export OPENAI_API_KEY=...`, and that name here; a key that was written into a file should "
            "be made anew"
        )
    try:
        url = urlsplit(base_url)
        wrong = url.scheme not in ("http", "https") or not url.hostname
        secret = bool(url.username or url.password or url.query or url.fragment)
        wrong = wrong or url.port == 0  # looking at it raises ValueError for one that is none
        wrong = wrong or not all("!" <= c <= "~" and c != "\\" for c in base_url)
    except ValueError:
        wrong, secret = True, "@" in base_url
    if secret:
        raise UserError(
            "corpus.llm.base_url holds a password or a query: put the key into the environment, under the name "
            "that corpus.llm.key_env says"
        )
    if wrong:
        raise UserError(f"corpus.llm.base_url is {mask(base_url)!r}, expected one such as https://host/v1")
