"""A Hugging Face Hub of one repository on this machine: the endpoints a download uses, and a CDN it redirects to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

REPOSITORY = "nvidia/personaplex-7b-v1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What it holds and how it behaves; `asked` are the ranges (None: whole) asked of each file."""

    files: dict[str, bytes]
    gated: bool = False
    tokens: frozenset[str] = frozenset()
    """Tokens that exist; those that end in `-in` have been let in."""
    cuts: dict[str, int] = field(default_factory=dict)
    """Bytes after which the next answer for a file breaks off, once."""
    served: Mapping[str, bytes] = field(default_factory=dict)
    """Content that is sent instead of what is listed."""
    status: int = 200
    page: bytes | None = None
    """What is answered to everything, by a site that is no Hub."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    authorizations: dict[str, set[str | None]] = field(default_factory=lambda: {"hub": set(), "cdn": set()})
    url: str = ""
    cdn: str = ""

    def listing(self) -> dict[str, Any]:
        """`/api/models/NAME/revision/REVISION?blobs=true`."""
        siblings: list[dict[str, Any]] = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            if name.endswith((".safetensors", ".tgz")):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 135}
            siblings.append(entry)
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "private": False, "siblings": siblings}

    def fetched(self) -> set[str]:
        """Names of the files that were asked for."""
        return {name for name, _ in self.asked}


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub and its CDN, each listening at a port of its own."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, role)) for role in ("hub", "cdn")]
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


def _handler(hub: FakeHub, role: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            authorization = self.headers.get("Authorization")
            hub.authorizations[role].add(authorization)
            path = self.path.partition("?")[0]
            if role == "cdn":
                self._send_file(path.removeprefix("/"))
                return
            token = authorization.removeprefix("Bearer ") if authorization else None
            if hub.page is not None:
                self._answer(200, hub.page, {})
            elif hub.status != 200:
                self._refuse(hub.status, "", "the server is not well")
            elif token is not None and token not in hub.tokens:
                self._refuse(401, "", "Invalid credentials in Authorization header")
            elif path.startswith("/api/models/"):
                name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                self._list(name, revision)
            elif path.startswith(prefix := f"/{REPOSITORY}/resolve/{COMMIT}/"):
                self._resolve(path.removeprefix(prefix), token)
            else:
                self._refuse(404, "EntryNotFound", "no such entry")

        def _list(self, name: str, revision: str) -> None:
            if name != REPOSITORY:
                self._refuse(401, "RepoNotFound", "Repository not found")
            elif revision not in ("main", COMMIT):
                self._refuse(404, "RevisionNotFound", "Invalid rev id")
            else:
                self._answer(200, json.dumps(hub.listing()).encode(), {"Content-Type": "application/json"})

        def _resolve(self, name: str, token: str | None) -> None:
            if hub.gated and not (token or "").endswith("-in"):
                self._refuse(403 if token else 401, "GatedRepo", f"Access to model {REPOSITORY} is restricted.")
            else:
                self._answer(302, b"", {"Location": f"{hub.cdn}/{name}", "X-Repo-Commit": COMMIT})

        def _send_file(self, name: str) -> None:
            content = hub.served.get(name, hub.files[name])
            asked = self.headers.get("Range")
            hub.asked.append((name, asked))
            first = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            headers = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if asked else {}
            rest = content[first:]
            sent = rest[: hub.cuts.pop(name, len(rest))]
            self._answer(206 if asked else 200, sent, headers, len(rest))

        def _refuse(self, status: int, code: str, message: str) -> None:
            self._answer(
                status,
                b"",
                {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message},
            )

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str], length: int | None = None) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = length is not None and length != len(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing: tests look at `asked`."""

    return Handler
