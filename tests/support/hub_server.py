"""A small Hugging Face hub on loopback, and the ways in which one can misbehave.

Speaks what huggingface_hub and pyllama ask of a hub: the listing of a model
with hashes, its tree, and `resolve` with HEAD, ranges and a redirect to a
storage host (a second port: another origin).
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LARGE = (".safetensors", ".gguf", ".pth", ".bin")  # what git LFS keeps, as on the real hub


def own_caches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's caches below a folder, and none of what the user has set for it."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """One model. `listing` may change the answer of the API before it is sent."""

    files: dict[str, bytes]
    revision: str = "main"
    gated: bool = False
    token: str | None = None  # needed for anything, if private; for files alone, if gated
    listing: Callable[[dict[str, Any]], None] = lambda answer: None

    @property
    def commit(self) -> str:
        everything = [(name, hashlib.sha1(content).hexdigest()) for name, content in sorted(self.files.items())]
        return hashlib.sha1(repr(everything).encode()).hexdigest()

    def digest(self, name: str) -> str:
        content = self.files[name]
        return hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_sha1(content)


@dataclass
class Faults:
    """What goes wrong with the bodies of files; everything off at first.

    statuses       answered in place of the next file requests, in order
    api_statuses   the same for the next listings
    drop_after     close the connection after so many bytes of a body, `drops` times
    nbytes_s       rate at which bodies trickle
    serve          answer a file request by hand: (handler, content) -> None
    only           the one file the faults are for
    api_serve      answer a listing by hand: (handler, its right body) -> None
    """

    statuses: list[int] = field(default_factory=list)
    api_statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    drops: int = 1 << 30
    nbytes_s: float | None = None
    no_ranges: bool = False
    redirect: Callable[[str], str] | None = None
    serve: "Callable[[_Handler, bytes], None] | None" = None
    only: str | None = None
    api_serve: "Callable[[_Handler, bytes], None] | None" = None


@dataclass
class Request:
    method: str
    host: str  # "hub" or "storage"
    path: str
    headers: dict[str, str]  # names in lower case


class Hub:
    """The server. `storage` True sends large files from a second origin, as the real one does."""

    def __init__(self, storage: bool = True) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.requests: list[Request] = []
        self._storage = storage
        self._servers = [_Server(self, "hub"), _Server(self, "storage")]

    @property
    def endpoint(self) -> str:
        return self._servers[0].url

    @property
    def storage_url(self) -> str | None:
        return self._servers[1].url if self._storage else None

    def file_requests(self, host: str | None = None) -> list[Request]:
        """GETs of file contents, at one host or both."""
        return [
            request
            for request in self.requests
            if request.method == "GET" and not request.path.startswith("/api/") and host in (None, request.host)
        ]

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


@contextmanager
def serving(storage: bool = True) -> Iterator[Hub]:
    hub = Hub(storage)
    try:
        yield hub
    finally:
        hub.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: Hub, host: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.host = hub, host
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are what the tests are about


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, host = self.server.hub, self.server.host
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Request(self.command, host, self.path, headers))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return self._api("/".join(parts[2:4]), parts[4:])
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self.status(404)

    # The API

    def _api(self, repo_id: str, rest: list[str]) -> None:
        hub = self.server.hub
        if hub.faults.api_statuses:
            return self.status(hub.faults.api_statuses.pop(0))
        repo = hub.repos.get(repo_id)
        if repo is None or (repo.token and not repo.gated and not self._authorized(repo)):
            return self.status(401, {"X-Error-Code": "RepoNotFound"})  # as the real hub, which tells nobody more
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in (repo.revision, repo.commit):
            return self.status(404, {"X-Error-Code": "RevisionNotFound"})
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        if rest and rest[0] == "tree":
            answer: Any = [_tree_entry(repo, name) for name in repo.files]
        else:
            answer = {
                "id": repo_id,
                "modelId": repo_id,
                "sha": repo.commit,
                "gated": "manual" if repo.gated else False,
                "siblings": [_sibling(repo, name, blobs) for name in repo.files],
            }
            repo.listing(answer)
        body = json.dumps(answer).encode()
        if hub.faults.api_serve:
            return hub.faults.api_serve(self, body)
        self.send(200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    # Files

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        hub, faults = self.server.hub, self.server.hub.faults
        repo = hub.repos.get(repo_id)
        if repo is None or name not in repo.files or revision not in (repo.revision, repo.commit):
            return self.status(404, {"X-Error-Code": "EntryNotFound"})
        if self.server.host == "hub" and repo.token and not self._authorized(repo):
            status = 403 if "Authorization" in self.headers else 401
            return self.status(status, {"X-Error-Code": "GatedRepo" if repo.gated else "RepoNotFound"})
        faulty = faults.only in (None, name)
        if faulty and faults.statuses:
            return self.status(faults.statuses.pop(0), faults.headers)
        content, digest = repo.files[name], repo.digest(name)
        linked = {
            "X-Repo-Commit": repo.commit,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{digest}"',
        }
        if faulty and faults.redirect:
            return self.status(302, {"Location": faults.redirect(self.path)})
        if self.server.host == "hub" and hub.storage_url and name.endswith(LARGE):
            # Signed, like the real ones; and the storage host has an ETag of its own.
            return self.status(302, {**linked, "Location": f"{hub.storage_url}{self.path}?Signature=secret"})
        if faulty and faults.serve and self.command == "GET":
            return faults.serve(self, content)
        etag = f'"{digest}"' if self.server.host == "hub" else f'"storage-{digest[:8]}"'
        headers = {"ETag": etag, **(linked if self.server.host == "hub" else {}), "Accept-Ranges": "bytes"}
        self._content(content, headers, faults if faulty else Faults())

    def _content(self, content: bytes, headers: dict[str, str], faults: Faults) -> None:
        start, status = 0, 200
        asked = self.headers.get("Range")
        if asked and not faults.no_ranges and self.headers.get("If-Range") in (None, headers["ETag"]):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content)), len(content) - 1)
            if start >= len(content):
                return self.status(416, {"Content-Range": f"bytes */{len(content)}"})
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}
            content = content[: end + 1]
        body = content[start:]
        headers = {**headers, "Content-Length": str(len(body))}
        if self.command == "HEAD":
            return self.send(status, headers)
        if faults.drop_after is not None and faults.drops > 0 and len(body) > faults.drop_after:
            faults.drops -= 1
            self.send(status, headers, body[: faults.drop_after])
            self.hang_up()
            return
        self.send(status, headers, b"" if faults.nbytes_s else body)
        if faults.nbytes_s:
            step = max(1, int(faults.nbytes_s / 100))
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
                time.sleep(0.01)

    def _authorized(self, repo: Repo) -> bool:
        return self.headers.get("Authorization") == f"Bearer {repo.token}"

    def send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def status(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send(status, {"Content-Length": "0", **(headers or {})})

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True


def _sibling(repo: Repo, name: str, blobs: bool) -> dict[str, Any]:
    content = repo.files[name]
    if not blobs:
        return {"rfilename": name}
    sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
    if name.endswith(LARGE):
        sibling["lfs"] = {"sha256": repo.digest(name), "size": len(content), "pointerSize": 134}
    return sibling


def _tree_entry(repo: Repo, name: str) -> dict[str, Any]:
    content = repo.files[name]
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": repo.digest(name), "size": len(content), "pointerSize": 134}
    return entry
