"""Keys and tokens: what looks like one is masked in every line, and refused where the name of a variable is expected."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from l2p.errors import UserError

# The beginnings that services give their keys, so that they can be found where they should not be.
KEY = re.compile(
    r"(?<![A-Za-z0-9])(?P<kind>hf_|sk-|sk_|gsk_|xai-|nvapi-|r8_|ghp_|gho_|github_pat_|glpat-|AKIA|AIza|Bearer\s+)"
    r"[A-Za-z0-9_\-]{12,}"
)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def mask(text: object) -> str:
    """`text` without anything that looks like a key."""
    return KEY.sub(lambda found: f"{found['kind']}***", str(text))


def looks_like_key(text: str) -> bool:
    """Whether a text is rather a key than a variable's name."""
    if KEY.search(text) or not NAME.fullmatch(text):
        return True
    kinds = [any(map(test, text)) for test in (str.islower, str.isupper, str.isdigit)]
    long_word = max(map(len, text.split("_"))) >= 16
    return long_word and sum(kinds) >= 2  # letters of both kinds, or letters and digits, without a break


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
    except ValueError:
        wrong, secret = True, "@" in base_url
    if secret:
        raise UserError(
            "corpus.llm.base_url holds a password or a query: put the key into the environment, under the name "
            "that corpus.llm.key_env says"
        )
    if wrong:
        raise UserError(f"corpus.llm.base_url is {mask(base_url)!r}, expected one such as https://host/v1")
