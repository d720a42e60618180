"""A Hub in a thread: the endpoints that `huggingface_hub` 2.x calls for models, kept in memory, with faults on demand.

Data sets answer under the same names as models.

The package `hf-local-hub` (3.0.0 on the index) would have been taken, but its wheel holds a client alone: the server is
a Go program that it looks for on the disk and does not bring, and it has no way to fail on purpose.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_writerwriterwriterwriter", "hf_readerreaderreaderreader"
LARGE = (".safetensors", ".png")


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[digest] = files
        self.refs[ref] = digest
        return digest

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        digest = self.refs.get(revision, revision)
        return (digest, self.commits[digest]) if digest in self.commits else None


@dataclass
class Fault:
    """What happens to the next `times` requests that match: a status, "cut", "spoil", or a function and then the usual."""

    method: str
    path: str
    action: int | str | Callable[[LocalHub], None]
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class LocalHub:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.refused: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.lock = threading.Lock()
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, action, times: int = 1, **headers: str) -> None:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, path, action, times, headers))

    def count(self, method: str, path: str) -> int:
        return sum(
            bool(re.search(path, line.split(" ")[1])) and line.startswith(method) for line in self.requests
        )


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer in many small packets waits 40 ms for each acknowledgement

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        self.spoil = False
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            fault = next(
                (
                    f
                    for f in self.hub.faults
                    if f.times and f.method == self.command and re.search(f.path, path)
                ),
                None,
            )
            if fault:
                fault.times -= 1
        if fault and fault.action == "cut" and self.command != "GET":
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault and isinstance(fault.action, int):
            self.hub.refused.append(path)
            return self._send(fault.action, {"error": "no"}, **fault.headers)
        if fault and callable(fault.action):
            fault.action(self.hub)
        self.spoil = bool(fault) and fault.action == "spoil"
        self.cut = bool(fault) and fault.action == "cut"
        for pattern, method in ROUTES:
            match = re.fullmatch(
                pattern, path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets")
            )
            if match:
                return method(self, **match.groupdict())
        self._send(404, {"error": f"no such endpoint {path}"})

    def _send(self, status: int, value: object = None, raw: bytes | None = None, **headers: str) -> None:
        raw = json.dumps(value).encode() if raw is None else raw
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            if getattr(self, "cut", False):
                self.wfile.write(raw[: len(raw) // 2])
                self.close_connection = True
                return
            self.wfile.write(raw)

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _repo(self, repo: str, write: bool = False) -> Repo | None:
        """The repository, or None after the refusal was sent."""
        found = self.hub.repos.get(repo)
        if found is None or (found.private and self.token not in (WRITER, READER)):
            self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif found.gated and self.token != WRITER:
            self._send(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        elif write and self.token != WRITER:
            self._send(403, {"error": "this token cannot write"})
        else:
            return found
        return None

    def _files(self, repo: Repo, rev: str) -> tuple[str, dict[str, bytes]] | None:
        files = repo.files(rev)
        if files is None:
            self._send(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        return files

    def whoami(self) -> None:
        roles = {WRITER: "write", READER: "read"}
        if self.token not in roles:
            return self._send(401, {"error": "Invalid username or password."})
        self._send(200, {"name": "ann", "auth": {"accessToken": {"role": roles[self.token]}}})

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'ann'}/{wanted['name']}"
        if self.token != WRITER or not name.startswith("ann/"):
            return self._send(403, {"error": "not yours"})
        if name in self.hub.repos:
            return self._send(409, {"error": "exists", "url": f"{self.hub.endpoint}/{name}"})
        repo = self.hub.repos[name] = Repo(private=wanted.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._send(200, {"url": f"{self.hub.endpoint}/{name}"})

    def info(self, repo: str, rev: str | None = None) -> None:
        if found := self._repo(repo):
            if files := self._files(found, rev or "main"):
                siblings = [{"rfilename": name} for name in files[1]]
                self._send(200, {"id": repo, "sha": files[0], "private": found.private, "siblings": siblings})

    def tree(self, repo: str, rev: str) -> None:
        if (found := self._repo(repo)) and (files := self._files(found, rev)):
            self._send(200, [_entry(name, content) for name, content in files[1].items()])

    def paths_info(self, repo: str, rev: str) -> None:
        if (found := self._repo(repo)) and (files := self._files(found, rev)):
            names = parse_qs(self.body.decode()).get("paths", [])
            self._send(200, [_entry(name, files[1][name]) for name in names if name in files[1]])

    def branch(self, repo: str, rev: str) -> None:
        if found := self._repo(repo, write=True):
            if rev in found.refs:
                return self._send(409, {"error": "exists"})
            found.refs[rev] = found.refs["main"]
            self._send(200, {})

    def preupload(self, repo: str, rev: str) -> None:
        if (found := self._repo(repo, write=True)) and (files := self._files(found, rev)):
            answer = []
            for wanted in json.loads(self.body)["files"]:
                name = wanted["path"]
                oid = {"oid": _oid(name, files[1][name])} if name in files[1] else {}
                mode = "lfs" if name.endswith(LARGE) else "regular"
                answer.append({"path": name, "uploadMode": mode, "shouldIgnore": False, **oid})
            self._send(200, {"files": answer})

    def batch(self, repo: str) -> None:
        if self._repo(repo, write=True):
            objects = []
            for wanted in json.loads(self.body)["objects"]:
                href = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}
                objects.append(wanted if wanted["oid"] in self.hub.large else {**wanted, "actions": href})
            self._send(200, {"objects": objects, "transfer": "basic"})

    def put(self, oid: str) -> None:
        self.hub.large[oid] = self.body[:-1] + b"!" if self.spoil else self.body
        self._send(200, {})

    def commit(self, repo: str, rev: str) -> None:
        if not (found := self._repo(repo, write=True)) or not (files := self._files(found, rev)):
            return
        head, changed = files[0], dict(files[1])
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header" and value.get("parentCommit", head) != head:
                return self._send(412, {"error": "the branch has moved"})
            if key == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                changed[value["path"]] = self.hub.large[value["oid"]]
            elif key == "deletedFile":
                del changed[value["path"]]
        answer = {}
        if self.query.get("create_pr"):
            rev = f"refs/pr/{sum(ref.startswith('refs/pr/') for ref in found.refs) + 1}"
            answer = {"pullRequestUrl": f"{self.hub.endpoint}/{repo}/discussions/{rev.split('/')[-1]}"}
        digest = found.commit(rev, changed)
        url = f"{self.hub.endpoint}/{repo}/commit/{digest}"
        self._send(200, {"success": True, "commitOid": digest, "commitUrl": url, **answer})

    def resolve(self, repo: str, rev: str, name: str) -> None:
        if (found := self._repo(repo)) and (files := self._files(found, rev)):
            if name not in files[1]:
                return self._send(404, {"error": "no file"}, X_Error_Code="EntryNotFound")
            content, etag = files[1][name], f'"{_oid(name, files[1][name])}"'
            raw = content[:-1] + b"!" if self.spoil else content
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            headers = {
                "X_Repo_Commit": files[0],
                "ETag": etag,
                "X_Linked_Etag": etag,
                "Accept_Ranges": "bytes",
            }
            if start:
                headers["Content_Range"] = f"bytes {start}-{len(raw) - 1}/{len(raw)}"
            self._send(206 if start else 200, raw=raw[start:], X_Linked_Size=str(len(raw)), **headers)

    def validate(self) -> None:
        self._send(200, {"errors": [], "warnings": []})


def _oid(name: str, content: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict:
    entry = {"type": "file", "path": name, "size": len(content), "oid": _oid(name, content)}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": entry["oid"], "size": len(content), "pointerSize": 130}
        entry["oid"] = "0" * 40
    return entry


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    (r"/api/whoami-v2", _Handler.whoami),
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml", _Handler.validate),
    (rf"/api/models/{REPO}", _Handler.info),
    (rf"/api/models/{REPO}/revision/(?P<rev>.+)", _Handler.info),
    (rf"/api/models/{REPO}/tree/(?P<rev>.+)", _Handler.tree),
    (rf"/api/models/{REPO}/paths-info/(?P<rev>.+)", _Handler.paths_info),
    (rf"/api/models/{REPO}/preupload/(?P<rev>.+)", _Handler.preupload),
    (rf"/api/models/{REPO}/branch/(?P<rev>.+)", _Handler.branch),
    (rf"/api/models/{REPO}/commit/(?P<rev>.+)", _Handler.commit),
    (rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/lfs/(?P<oid>\w+)", _Handler.put),
    (rf"/{REPO}/resolve/(?P<rev>refs/pr/\d+|[^/]+)/(?P<name>.+)", _Handler.resolve),
]
