"""A local Hub: Hugging Face's HTTP protocol on 127.0.0.1, for the real `huggingface_hub` client.

    with Hub(tmp_path) as hub:
        hub.add("org/name", {"adapter_config.json": b"{}", "adapter_model.safetensors": 3 << 30})
        subprocess.run([...], env=hub.env(tmp_path / "home", token=hub.token))

Downloads (info, tree, resolve with ranges, large files by redirect to another host), uploads (create, preupload, LFS,
commit, branches, pull requests) and the errors, with the headers by which the client tells them apart. It does not
speak Xet: `env` switches that off in the client.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_LARGE = (".safetensors", ".bin", ".gguf", ".parquet")  # what .gitattributes sends to LFS on the Hub
_KINDS = {"models": "model", "datasets": "dataset"}


@dataclass(frozen=True)
class _File:
    path: Path  # where its bytes are
    size: int
    sha256: str  # its name in LFS
    oid: str  # its name in git; for a large file the client only wants 40 hexadecimal digits


@dataclass
class _Repo:
    id: str
    kind: str
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)  # "main", "refs/pr/1" -> commit
    commits: dict[str, dict[str, _File]] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, _File]) -> str:
        listing = sorted((path, file.oid) for path, file in files.items())
        sha = hashlib.sha1(f"{self.kind} {self.id} {len(self.commits)} {listing}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha


@dataclass
class _Fault:
    """The next `times` requests whose "METHOD path" contains `match` go wrong."""

    match: str
    status: int | None
    cut_after: int | None
    times: int


class _HTTPError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **more: str):
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


class Hub:
    """The server. `url` is its address, `requests` what was asked of it: "METHOD path", with the range if any."""

    token = "hf_OwnerTokenOfTheLocalHub"  # reads and writes everything
    reader = "hf_ReadTokenOfTheLocalHub"  # valid, made for reading only
    stranger = "hf_StrangerTokenOfTheLocalHub"  # valid, but neither a member nor on a gated repository's list

    def __init__(self, folder: Path):
        self.requests: list[str] = []
        self._repos: dict[tuple[str, str], _Repo] = {}
        self._faults: list[_Fault] = []
        self._objects = folder / "hub-objects"
        self._objects.mkdir(parents=True)
        self._closing = threading.Event()
        self._lock = threading.Lock()  # commits and faults come from several connections at once
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.block_on_close = False  # the client may keep connections open
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Vanish from the network; may be called twice."""
        if not self._closing.is_set():
            self._closing.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def env(self, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
        """Return the environment of a process whose Hub this is; its cache and token file lie in `home`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        mine = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return kept | mine | more | ({"HF_TOKEN": token} if token else {})

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes | int],
        *,
        kind: str = "model",
        private: bool = False,
        gated: bool = False,
        revision: str = "main",
    ) -> str:
        """Commit a repository's whole content, return the commit; a number is a file of so many zeros."""
        entry = self._repos.setdefault((kind, repo), _Repo(repo, kind))
        entry.private, entry.gated = private, gated
        if "main" not in entry.refs:
            entry.commit("main", {})  # as on the Hub, a branch starts from the initial commit
        return entry.commit(revision, {path: self.store(content) for path, content in files.items()})

    def files(self, repo: str, *, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Return what a repository holds at a branch, a commit or refs/pr/N."""
        entry = self._repos[kind, repo]
        return {p: f.path.read_bytes() for p, f in entry.commits[entry.refs.get(revision, revision)].items()}

    def fail_next(self, match: str, *, status: int | None = None, cut_after: int | None = None, times: int = 1) -> None:
        """Fail requests whose "METHOD path" contains `match`: by status, a cut after so many bytes, or silence.

        What a GET is cut in is the answer; in an upload it is what the client sends.
        """
        self._faults.append(_Fault(match, status, cut_after, times))

    def store(self, content: bytes | int) -> _File:
        """Keep a file's content; zeros are a sparse file, so that 3 GB cost nothing."""
        known = content if isinstance(content, bytes) else f"{content} zeros".encode()
        sha256 = hashlib.sha256(known).hexdigest()
        path = self._objects / sha256
        with path.open("wb") as file:
            file.write(content) if isinstance(content, bytes) else file.truncate(content)
        oid = hashlib.sha1(b"blob %d\0" % len(known) + known).hexdigest()  # as git names it
        return _File(path, path.stat().st_size, sha256, oid)

    def stored(self, sha256: str) -> _File | None:
        """Return a large file by its name in LFS."""
        path = self._objects / sha256
        return _File(path, path.stat().st_size, sha256, sha256[:40]) if path.is_file() else None

    def next_fault(self, request: str) -> _Fault | None:
        with self._lock:
            fault = next((f for f in self._faults if f.match in request and f.times > 0), None)
            if fault:
                fault.times -= 1
            return fault

    # The protocol, one method for each route below; a method returns JSON or sends the answer itself.

    def whoami(self, request: _Handler) -> dict[str, Any]:
        if request.user is None:
            raise _HTTPError(401, "Invalid username or password.")
        role = "read" if request.user == "reader" else "write"
        auth = {"type": "access_token", "accessToken": {"displayName": "a token", "role": role}}
        return {"type": "user", "name": request.user, "orgs": [], "auth": auth}

    def auth_check(self, request: _Handler, kinds: str, repo: str, write: str | None) -> dict[str, Any]:
        self._find(request, _KINDS[kinds], repo, "main", write=bool(write), content=True)
        return {}

    def validate_yaml(self, request: _Handler) -> dict[str, Any]:
        request.body()
        return {"errors": [], "warnings": []}

    def create_repo(self, request: _Handler) -> dict[str, Any]:
        wanted = json.loads(request.body())
        if request.user != "owner":
            raise _HTTPError(401 if request.user is None else 403, "You have no rights to create a repository here.")
        kind = wanted.get("type") or "model"
        repo = f"{wanted.get('organization') or request.user}/{wanted['name']}"
        url = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{repo}"
        if (kind, repo) in self._repos:
            raise _HTTPError(409, "You already created this repository.", url=url)
        self.add(repo, {}, kind=kind, private=bool(wanted.get("private")) or wanted.get("visibility") == "private")
        return {"url": url, "name": repo}

    def info(self, request: _Handler, kinds: str, repo: str, revision: str = "main") -> dict[str, Any]:
        entry, sha = self._find(request, _KINDS[kinds], repo, revision)
        siblings = [{"rfilename": path, "size": f.size, "blobId": f.oid} for path, f in entry.commits[sha].items()]
        facts = {"private": entry.private, "gated": "manual" if entry.gated else False, "disabled": False}
        counts = {"downloads": 0, "likes": 0, "tags": [], "lastModified": "2026-01-01T00:00:00.000Z"}
        return {"_id": "0" * 24, "id": repo, "modelId": repo, "sha": sha, "siblings": siblings, **facts, **counts}

    def tree(self, request: _Handler, kinds: str, repo: str, revision: str, folder: str | None) -> list[dict[str, Any]]:
        entry, sha = self._find(request, _KINDS[kinds], repo, revision)
        prefix = f"{folder}/" if folder else ""
        inside = {path: f for path, f in entry.commits[sha].items() if path.startswith(prefix)}
        if request.query.get("recursive", "").lower() == "true":
            return [_tree_entry(path, f) for path, f in inside.items()]
        folders = {prefix + path[len(prefix) :].split("/")[0] for path in inside if "/" in path[len(prefix) :]}
        rows = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
        return rows + [_tree_entry(path, f) for path, f in inside.items() if "/" not in path[len(prefix) :]]

    def paths_info(self, request: _Handler, kinds: str, repo: str, revision: str) -> list[dict[str, Any]]:
        wanted = parse_qs(request.body().decode()).get("paths", [])
        entry, sha = self._find(request, _KINDS[kinds], repo, revision)
        return [_tree_entry(path, f) for path, f in entry.commits[sha].items() if path in wanted]

    def refs(self, request: _Handler, kinds: str, repo: str) -> dict[str, Any]:
        entry, _ = self._find(request, _KINDS[kinds], repo, "main")
        pulls = [{"name": r, "ref": r, "targetCommit": s} for r, s in entry.refs.items() if r.startswith("refs/pr/")]
        branches = [
            {"name": r, "ref": f"refs/heads/{r}", "targetCommit": s} for r, s in entry.refs.items() if "refs/" not in r
        ]
        return {"branches": branches, "tags": [], "converts": [], "pullRequests": pulls}

    def create_branch(self, request: _Handler, kinds: str, repo: str, branch: str) -> dict[str, Any]:
        start = json.loads(request.body() or b"{}").get("startingPoint", "main")
        entry, sha = self._find(request, _KINDS[kinds], repo, start, write=True)
        if branch in entry.refs:
            raise _HTTPError(409, f"Reference already exists: {branch}")
        entry.refs[branch] = sha
        return {}

    def preupload(self, request: _Handler, kinds: str, repo: str, revision: str) -> dict[str, Any]:
        asked = json.loads(request.body())["files"]
        pull = request.query.get("create_pr") == "1"
        entry, sha = self._find(request, _KINDS[kinds], repo, revision, write=not pull)
        now = {path: f.sha256 if path.endswith(_LARGE) else f.oid for path, f in entry.commits[sha].items()}
        return {
            "files": [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(_LARGE) or f["size"] > 10 << 20 else "regular",
                    "shouldIgnore": False,
                    "oid": now.get(f["path"]),
                }
                for f in asked
            ]
        }

    def lfs_batch(self, request: _Handler, prefix: str | None, repo: str) -> dict[str, Any]:
        wanted = json.loads(request.body())["objects"]
        self._find(request, "dataset" if prefix else "model", repo, "main", write=request.user != "stranger")
        missing = [(o, self.stored(o["oid"]) is None) for o in wanted]
        return {
            "transfer": "basic",
            "objects": [
                {**o, "actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}} if absent else o
                for o, absent in missing
            ],
        }

    def lfs_put(self, request: _Handler, oid: str) -> dict[str, Any]:
        content = request.body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise _HTTPError(400, "The content is not what the object is named after.")
        self.store(content)
        return {}

    def commit(self, request: _Handler, kinds: str, repo: str, revision: str) -> dict[str, Any]:
        lines = [json.loads(line) for line in request.body().splitlines()]
        pull = request.query.get("create_pr") == "1"
        entry, parent = self._find(request, _KINDS[kinds], repo, revision, write=not pull)
        header = lines[0]["value"]
        if header.get("parentCommit", parent) != parent:
            raise _HTTPError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(entry.commits[parent])
        for operation in lines[1:]:
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = self.store(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                stored = self.stored(value["oid"])
                if stored is None:
                    raise _HTTPError(400, f"Your push was rejected because an LFS pointer points to nothing: {value}")
                files[value["path"]] = stored
            else:  # deletedFile, deletedFolder
                path = value["path"].rstrip("/")
                files = {p: f for p, f in files.items() if p != path and not p.startswith(f"{path}/")}
        with self._lock:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in entry.refs)
            sha = entry.commit(f"refs/pr/{number}" if pull else revision, files)
        page = f"{self.url}/{'datasets/' if kinds == 'datasets' else ''}{repo}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{page}/commit/{sha}"}
        return answer | ({"pullRequestUrl": f"{page}/discussions/{number}"} if pull else {})

    def resolve(self, request: _Handler, prefix: str | None, repo: str, revision: str, path: str) -> None:
        entry, sha = self._find(request, "dataset" if prefix else "model", repo, revision, content=True)
        file = entry.commits[sha].get(path)
        if file is None:
            raise _HTTPError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"'}
        if path.endswith(_LARGE):  # as on the Hub, the bytes are on another host, which must not see the token
            headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
            place = f"http://localhost:{self._server.server_port}/cdn/{file.sha256}/{path}"
            request.send(302, b"", headers | {"Location": place})
        else:
            request.send_file(file, headers)

    def cdn(self, request: _Handler, sha256: str, path: str) -> None:
        file = self.stored(sha256)
        if request.headers.get("Authorization") or file is None:
            raise _HTTPError(400, "Only one auth mechanism allowed")
        request.send_file(file, {"ETag": f'"{sha256}"'})

    def _find(
        self, request: _Handler, kind: str, repo: str, revision: str, *, write: bool = False, content: bool = False
    ) -> tuple[_Repo, str]:
        """Return a repository and a commit if this user may have them; `content` is what gates keep back."""
        entry = self._repos.get((kind, repo))
        if entry is None or (entry.private and request.user != "owner"):  # the Hub does not tell these two apart
            raise _HTTPError(401 if request.user is None else 404, "Repository not found", "RepoNotFound")
        if content and entry.gated and request.user != "owner":
            status = 401 if request.user is None else 403
            raise _HTTPError(status, f"Access to {kind} {repo} is restricted.", "GatedRepo")
        if write and request.user != "owner":
            raise _HTTPError(401 if request.user is None else 403, "You have read access but not the required one.")
        sha = entry.refs.get(revision, revision)
        if sha not in entry.commits:
            raise _HTTPError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return entry, sha


def _tree_entry(path: str, file: _File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if path.endswith(_LARGE):
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return entry


_API = r"/api/(models|datasets)/([^/]+/[^/]+)"
_RAW = r"/(datasets/)?([^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("GET", r"/api/whoami-v2", Hub.whoami),
    ("POST", r"/api/validate-yaml", Hub.validate_yaml),
    ("POST", r"/api/repos/create", Hub.create_repo),
    ("GET", _API, Hub.info),
    ("GET", _API + r"/auth-check(/write)?", Hub.auth_check),
    ("GET", _API + r"/revision/([^/]+)", Hub.info),
    ("GET", _API + r"/tree/([^/]+)(?:/(.+))?", Hub.tree),
    ("POST", _API + r"/paths-info/([^/]+)", Hub.paths_info),
    ("GET", _API + r"/refs", Hub.refs),
    ("POST", _API + r"/branch/([^/]+)", Hub.create_branch),
    ("POST", _API + r"/preupload/([^/]+)", Hub.preupload),
    ("POST", _API + r"/commit/([^/]+)", Hub.commit),
    ("POST", _RAW + r"\.git/info/lfs/objects/batch", Hub.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", Hub.lfs_put),
    ("GET", r"/cdn/([0-9a-f]{64})/(.+)", Hub.cdn),
    ("GET", _RAW + r"/resolve/([^/]+)/(.+)", Hub.resolve),
]


class _Handler(BaseHTTPRequestHandler):
    """One request: who asks, what for, and how it is answered."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    user: str | None
    query: dict[str, str]
    fault: _Fault | None

    def _answer(self) -> None:
        address = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        asked = f"{self.command} {unquote(address.path)}"
        self.hub.requests.append(" ".join(filter(None, [asked, self.headers.get("Range")])))
        self.fault = self.hub.next_fault(asked)
        try:
            if self.fault and self.fault.status:
                self.body()
                self.send(self.fault.status, b"<html>Not what you asked for</html>", {"Content-Type": "text/html"})
                return
            if self.fault and self.fault.cut_after is None:
                self.hub._closing.wait()  # silence
                self.close_connection = True
                return
            if self.fault and self.command in ("POST", "PUT"):
                self.rfile.read(self.fault.cut_after)
                self.close_connection = True
                return
            self.user = self._user()
            method = "GET" if self.command == "HEAD" else self.command
            for verb, pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, address.path)
                if match and verb == method:
                    parts = (None if group is None else unquote(group) for group in match.groups())
                    result = answer(self.hub, self, *parts)
                    if result is not None:
                        self.send(200, json.dumps(result).encode(), {"Content-Type": "application/json"})
                    return
            raise _HTTPError(404, "Sorry, we can't find the page you are looking for.")
        except _HTTPError as error:
            self.body()  # what is left unread would be taken for the next request
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            content = json.dumps({"error": error.message, **error.more}).encode()
            self.send(error.status, content, headers | {"Content-Type": "application/json"})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client gave up first

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        users = {
            "": None,
            self.hub.token: "owner",
            self.hub.reader: "reader",
            self.hub.stranger: "stranger",
        }
        if token not in users:
            raise _HTTPError(401, "Invalid credentials in Authorization header")
        return users[token]

    def body(self) -> bytes:
        """Return what the client sent; empty when asked again."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            del self.headers["Transfer-Encoding"]
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        del self.headers["Content-Length"]
        return content

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self._head(status, len(content), headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_file(self, file: _File, headers: dict[str, str]) -> None:
        """Send a file or the range of it that was asked for, up to where the connection is to be cut."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1 if asked and asked[2] else file.size, file.size)
        if asked:
            headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{file.size}"}
        self._head(206 if asked else 200, end - start, headers | {"Accept-Ranges": "bytes"})
        if self.command == "HEAD":
            return
        left = end - start
        if self.fault and self.fault.cut_after is not None:
            left = min(left, self.fault.cut_after)
            self.close_connection = True
        with file.path.open("rb") as source:
            source.seek(start)
            while left and (block := source.read(min(left, 1 << 20))):
                self.wfile.write(block)
                left -= len(block)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean: `Hub.requests` has it all."""
