"""The Hugging Face Hub as a place that files come from and go to: names, patience, and one clear line for each failure.

Ground floor: teachers and students are fetched through it, and publishing (`l2p/hub/`) stands on it.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from l2p.errors import UserError
from l2p.files import looks_like_path, no_such
from l2p.keys import mask
from l2p.terminal import say

T = TypeVar("T")
NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>.+))?", re.ASCII)
REVISION = re.compile(
    r"(?!.*(?:\.\.|//|/\.))\w[\w./-]{0,254}", re.ASCII
)  # as git has it: no `..`, which leaves the cache
TEXTS = ("*.json", "*.txt", "*.jinja", "*.model")
_commits: dict[tuple[HubName, str | None], str] = {}  # what was read first in this process
TRIES = 5
LONGEST_WAIT = 300.0  # seconds; a Hub that asks for more is not worth waiting for unattended
BUSY = (408, 429, 500, 502, 503, 504)
HTTP_LIBRARIES = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "requests",
    "urllib3",
)  # changes with huggingface_hub


@dataclass(frozen=True)
class HubName:
    """``USER/NAME`` and, after an ``@``, a branch, tag or commit.

    Raises:
        UserError: a repository or a revision that is none, such as ``../../token``: both become parts of paths.
    """

    repo: str
    revision: str | None = None
    kind: Literal["model", "dataset"] = "model"

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.repo)
        except HFValidationError:
            raise UserError(f"{str(self.repo)[:200]!r} is no name on the Hub, expected USER/NAME") from None
        if self.revision is not None and not REVISION.fullmatch(str(self.revision)):
            raise UserError(
                f"{str(self.revision)[:200]!r} is no revision of {self.repo}: expected a branch, a tag or a commit"
            )

    @classmethod
    def parse(cls, text: str, kind: Literal["model", "dataset"] = "model") -> HubName | None:
        """The name in `text`, or None where it is none."""
        match = NAME.fullmatch(text)
        try:
            return cls(match["repo"], match["revision"], kind) if match else None
        except UserError:
            return None

    @classmethod
    def of_input(cls, text: str) -> HubName | None:
        """The name that a user gave where a folder could stand as well, and none does; None where it is none.

        Raises:
            UserError: it looks like a path: the Hub is not asked for a mistyped folder.
        """
        name = cls.parse(text)
        if looks_like_path(text) and (name is None or name.revision is None):
            raise no_such(text, f"{text}@main is a name on the Hub" if name else "")
        return name

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def download(
    name: HubName, patterns: Sequence[str], endpoint: str | None = None, ignore: Sequence[str] = ()
) -> Path:
    """Fetch the files of a repository into the Hub's cache, from where they come the next time.

    A branch or tag stands for the commit that it led to when this process first read it: what was checked is what is used,
    though somebody push in between. Nothing is fetched where the disk is too small for all of it. Files that are new are compared with the hashes that
    the Hub gives; one that differs is removed again.

    Args:
        patterns: such as ``*.safetensors``; no other file is fetched.
        ignore: patterns of files that are not fetched all the same.

    Returns:
        the folder of the snapshot.

    Raises:
        UserError: see :func:`explain`; or a file arrived damaged.
    """
    from huggingface_hub import HfApi, snapshot_download

    key = (name, endpoint)
    wanted = {
        "repo_type": name.kind,
        "revision": _commits.get(key, name.revision),
        "allow_patterns": list(patterns),
        "ignore_patterns": list(ignore),
        "endpoint": endpoint,
    }

    def fetch() -> Path:
        before = set(_cached(name, endpoint))
        _check_space(name, wanted)
        path = snapshot_download(name.repo, **wanted)
        _commits.setdefault(key, Path(path).name)
        fresh = [file for file in Path(path).rglob("*") if file.is_file() and file not in before]
        if fresh:
            api = HfApi(endpoint=endpoint)
            names = [file.relative_to(path).as_posix() for file in fresh]
            local = dict(zip(names, fresh, strict=True))
            wrong = differing(api, name.repo, Path(path).name, local, name.kind)
            for file in (Path(path) / wrong_name for wrong_name in wrong):
                file.resolve().unlink()
                file.unlink(missing_ok=True)
            if wrong:
                raise UserError(
                    f"{', '.join(wrong)} of {name} arrived damaged: another hash than the Hub's; pull again"
                )
        return Path(path)

    return patient(fetch, name)


def forget_commits(repo: str) -> None:
    """Read the branches and tags of a repository anew from now on: this process itself has changed it."""
    for key in [key for key in _commits if key[0].repo == repo]:
        del _commits[key]


def _check_space(name: HubName, wanted: dict[str, Any]) -> None:
    """Raises UserError where what is still to be fetched is more than the cache's disk can take."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        files = snapshot_download(name.repo, **wanted, dry_run=True)
    except (
        DryRunError
    ):  # the Hub cannot be reached: the cache may have it all, and the download itself says if not
        return
    size = sum(file.file_size or 0 for file in files if file.will_download)
    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise UserError(
            f"{name} needs {size / 1e9:,.1f} GB more in {cache}, where {free / 1e9:,.1f} GB are free: free some, or set "
            "HF_HOME to a folder on a larger disk"
        )


def commit_of(folder: Path) -> str | None:
    """The commit a folder of the Hub's cache is a snapshot of; None elsewhere."""
    return folder.name if folder.parent.name == "snapshots" else None


def cached_commit(name: HubName) -> str | None:
    """The commit that a name's revision stood for when it was last fetched; None where the cache does not know it."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.repo, repo_type=name.kind)
    revision = name.revision or "main"
    if (folder / "snapshots" / revision).is_dir():
        return revision
    reference = folder / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None


def _cached(name: HubName, endpoint: str | None) -> list[Path]:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.repo, repo_type=name.kind)
    return [file for file in (folder / "snapshots").rglob("*") if file.is_file()]


def differing(api: Any, repo: str, revision: str, files: dict[str, Path], kind: str = "model") -> list[str]:
    """Names of those `files` (name on the Hub -> local path) that the Hub lacks or holds with another hash."""
    found = {}
    names = list(files)
    for start in range(0, len(names), 100):
        for info in api.get_paths_info(repo, names[start : start + 100], revision=revision, repo_type=kind):
            found[info.path] = info.lfs.sha256 if getattr(info, "lfs", None) else info.blob_id
    return [name for name, path in files.items() if found.get(name) != _hash(path, found.get(name))]


def _hash(path: Path, like: str | None) -> str:
    """SHA-256 of a file where `like` is one (large files on the Hub), else git's own hash of it."""
    if like is not None and len(like) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def patient(call: Callable[[], T], name: HubName, network: bool = True) -> T:
    """`call()`, and again while the Hub is busy: as long as its ``Retry-After`` says, else 1, 2, 4, ... seconds.

    Args:
        network: whether a connection that breaks is a reason to try again as well.

    Raises:
        UserError: in the words of :func:`explain`, when it failed for another reason, or TRIES times.
    """
    for attempt in range(TRIES):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:  # the Hub's client passes on what its HTTP library and its threads raise
            line = explain(error, name)
            wait = _wait(error, attempt, network)
            if line is None:
                raise
            if wait is None or attempt == TRIES - 1:
                raise UserError(line) from None
            say(f"{line}; waiting {wait:.0f} s, then try {attempt + 2} of {TRIES}")
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _wait(error: Exception, attempt: int, network: bool) -> float | None:
    """Seconds after which another try makes sense; None if it does not."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    cause = _cause(error)
    if isinstance(error, OfflineModeIsEnabled) or isinstance(cause, OfflineModeIsEnabled):
        return None
    response = getattr(cause, "response", None)
    if response is None:
        return 2.0**attempt if network and _is_network(cause) else None
    if response.status_code not in BUSY:
        return None
    asked = response.headers.get("Retry-After", "")
    wait = float(asked) if asked.isdecimal() else 2.0**attempt
    return wait if wait <= LONGEST_WAIT else None


def _cause(error: BaseException) -> BaseException:
    """The failure of HTTP or of the disk behind what the client's threads and caches wrapped around it."""
    link: BaseException | None = error
    while link is not None:
        full = isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or getattr(link, "response", None) is not None or _is_network(link):
            return link
        link = link.__cause__ or link.__context__
    return error


def _is_network(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in HTTP_LIBRARIES or isinstance(
        error, (ConnectionError, TimeoutError)
    )


def explain(error: Exception, name: HubName) -> str | None:
    """One line for a failure of the Hub, of the way to it, or of the disk; None for a bug. Never holds a token."""
    from huggingface_hub import errors

    cause = _cause(error)
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(cause, errors.OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE is set and {name} is not in the Hub's cache: unset it, or fetch {name} elsewhere"
        )
    if isinstance(cause, errors.GatedRepoError):
        return _explain_gate(name)
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"{name.repo} has no revision {name.revision or 'main'}: expected a branch, a tag or a commit"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return f"{name.repo} is not on the Hub, or is private: check the name, or run `hf auth login`"
    response = getattr(cause, "response", None)
    if response is not None:
        return _explain_status(response.status_code, response.headers.get("Retry-After"), cause, name)
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device for {name}: free some and run the same command again"
    if _is_network(cause):
        return f"the Hub cannot be reached for {name} ({type(cause).__name__}): check the network"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{name} is not in the Hub's cache and the Hub cannot be reached: check the network, and HF_HUB_OFFLINE"
    if isinstance(error, (errors.HFValidationError, errors.EntryNotFoundError)):
        return f"{name}: {mask(str(error).splitlines()[0])}"
    return None


def _explain_gate(name: HubName) -> str:
    from huggingface_hub import constants, get_token

    page = f"{constants.ENDPOINT}/{name.repo}"
    if get_token() is None:
        return f"{name} is gated and there is no token here: accept its licence at {page}, then run `hf auth login`"
    return (
        f"{name} is gated: accept its licence at {page} with the account of this token; a fine-grained token must also "
        "be allowed to read gated repositories"
    )


def _explain_status(status: int, retry_after: str | None, error: BaseException, name: HubName) -> str:
    asked = f" and asks to wait {retry_after} s" if retry_after else ""
    known = {
        401: "the Hub does not know this token: run `hf auth login`",
        403: f"this token may not do that to {name.repo}: make one that may write, then run `hf auth login`",
        409: f"{name.repo} was changed by somebody else meanwhile: run the same command again",
        412: f"{name.repo} was changed by somebody else meanwhile: run the same command again",
        413: f"a file is too large for the Hub to take into {name.repo}",
        429: f"the Hub is asked too much (429){asked}",
    }
    if status in known:
        return known[status]
    if status in BUSY:
        return f"the Hub is out of order ({status}){asked}"
    return f"the Hub refused {name} ({status}): {mask(str(error).splitlines()[0])}"
