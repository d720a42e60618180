"""`push`: a student's folder becomes one commit on the Hub, or nothing does.

One commit holds all: files that are new, changed or gone. Large files go up before it, and a file that is up already
is not sent again, which is how an interrupted push goes on. Afterwards the Hub is asked for its hashes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p.artifacts import CHECKSUMS
from l2p.errors import UserError
from l2p.files import PathLike
from l2p.hub.client import HubName, differing, forget_commits, patient
from l2p.hub.stage import stage
from l2p.students.lora import ADAPTER, ADAPTER_CONFIG
from l2p.students.resolve import PATTERNS, resolve_student

DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class Pushed:
    """What a push did, or with `dry_run` would do: files and their bytes, files to delete, commit and address."""

    files: dict[str, int]
    deleted: list[str]
    commit: str | None
    url: str


def push(
    student: PathLike,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dtype: str | None = None,
    create_pr: bool = False,
    include_text_encoder: bool = False,
    quantize: str | None = None,
    dry_run: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Publish a student (a folder, or a name that `resolve_student` finds) as ``USER/NAME``, made where it is not there.

    Args:
        private: whether a repository that is made anew is private; one that is there stays as it is.
        revision: branch; made from main where it is not there.
        dtype: see :func:`l2p.hub.stage.stage`, as `include_text_encoder` and `quantize`.
        create_pr: open a pull request instead of changing the branch.
        dry_run: make the folder, look at the Hub, change nothing.
        endpoint: address of another Hub.
        token: else the one of `hf auth login` or HF_TOKEN.

    Raises:
        UserError: a broken student, no or a read-only token, a wrong name, no way to the Hub, a full disk, a branch that
            somebody else changed meanwhile, or a file that arrived with another hash.
    """
    from huggingface_hub import HfApi, get_token

    target = HubName.parse(name)
    if target is None or target.revision is not None:
        raise UserError(f"{name!r} is no name on the Hub, expected USER/NAME; a branch goes into --revision")
    if endpoint and (not endpoint.startswith(("http://", "https://")) or "@" in endpoint):
        raise UserError("the endpoint is expected as https://HOST, without a user or a password in it")
    token = token or get_token()
    if not token and not dry_run:
        raise UserError("no Hub token: run `hf auth login`, or set HF_TOKEN, with a token that may write")
    api = HfApi(endpoint=endpoint, token=token or False, library_name="latent2pixel")
    if not dry_run:
        _check_token(api, target)
    branch = revision or DEFAULT_REVISION
    # Beside nothing of the user's: what is staged is thrown away, and a full disk must not leave halves around.
    with tempfile.TemporaryDirectory(prefix="l2p-push-") as scratch:
        folder = stage(
            resolve_student(student, endpoint),
            Path(scratch) / "student",
            dtype=dtype,
            include_text_encoder=include_text_encoder,
            name=name if branch == DEFAULT_REVISION else f"{name}@{branch}",
            quantize=quantize,
        )
        files = {
            path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
        }
        upload = _Upload(api, target, branch, files, create_pr)
        return upload.plan() if dry_run else upload.run(private)


def _check_token(api: Any, target: HubName) -> None:
    account = patient(api.whoami, target, network=False)
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(
            f"the token of {account.get('name')} may only read: make one that may write, then run `hf auth login`"
        )


class _Upload:
    """One folder on its way to one branch."""

    def __init__(
        self, api: Any, target: HubName, revision: str, files: dict[str, Path], create_pr: bool
    ) -> None:
        self.api, self.target, self.revision = api, target, revision
        self.files, self.create_pr = files, create_pr

    def plan(self) -> Pushed:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        def look() -> list[str]:
            try:
                return self._stale(self.revision)
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return []  # would be made

        return self._result(patient(look, self.target), None, f"{self.api.endpoint}/{self.target.repo}")

    def run(self, private: bool) -> Pushed:
        repo = self.target.repo
        self._patient(lambda: self.api.create_repo(repo, private=private or None, exist_ok=True))
        if self.revision != DEFAULT_REVISION:
            self._patient(lambda: self.api.create_branch(repo, branch=self.revision, exist_ok=True))
        deleted = self._patient(lambda: self._stale(self.revision))
        # A lost answer to a pull request would open a second one; a branch is only moved from where it was seen.
        commit = patient(self._commit, HubName(repo, self.revision), network=not self.create_pr)
        forget_commits(repo)
        where = commit.pr_revision if self.create_pr else commit.oid
        wrong = self._patient(lambda: differing(self.api, repo, where, self.files))
        if wrong:
            raise UserError(
                f"{', '.join(wrong)} lies on the Hub with another hash than here: run the same command again"
            )
        return self._result(deleted, commit.oid, commit.pr_url or commit.commit_url)

    def _patient(self, call: Callable[[], Any]) -> Any:
        return patient(call, HubName(self.target.repo, self.revision))

    def _commit(self) -> Any:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        repo, revision = self.target.repo, self.revision
        head = self.api.model_info(repo, revision=revision).sha
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in self.files.items()
        ]
        deletions = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in self._stale(head)]
        return self.api.create_commit(
            repo,
            [*additions, *deletions],
            commit_message="Upload a student with latent2pixel",
            revision=revision,
            create_pr=self.create_pr,
            parent_commit=head,
        )

    def _stale(self, revision: str) -> list[str]:
        """Files of an earlier student that this one does not have, such as shards; other people's files stay."""
        from fnmatch import fnmatch

        there = [
            item.path for item in self.api.list_repo_tree(self.target.repo, revision=revision, recursive=True)
        ]
        ours = ("model*.safetensors", "model.safetensors.index.json", "text_encoder/*", "tokenizer/*")
        made = (*ours, ADAPTER, ADAPTER_CONFIG, CHECKSUMS, "recipe.yaml", "metrics.json", "pictures.png")
        return [
            path
            for path in there
            if path not in self.files
            and any(fnmatch(path, mine) for mine in made)
            and any(fnmatch(path, kind) for kind in PATTERNS)
        ]

    def _result(self, deleted: list[str], commit: str | None, url: str) -> Pushed:
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        return Pushed(sizes, deleted, commit, url)
