"""The page to talk to the agent, at `/`: plain files, no build step, nothing fetched from anywhere else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

INDEX = "index.html"

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# The page's own files and its own server, and nothing else; blob: is the recording it lets its reader listen to.
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Kept, but asked about each time: a page and a server of different versions would not understand each other.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def router() -> APIRouter:
    """The page at `/`, and the files it is made of under `/page/`."""
    routes = APIRouter()
    static = _read()

    async def index(request: Request) -> Response:
        return _answer(static[INDEX], request)

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        return _answer(static[name], request) if name in static else Response("no such file\n", 404)

    # Not operations of the API, so not in its document.
    routes.add_route("/", index, include_in_schema=False)
    routes.add_route("/page/{name}", asset, include_in_schema=False)
    return routes


def _read() -> dict[str, _File]:
    """Every file by its name. Only these can be asked for, so no name leads anywhere else."""
    static = {}
    for path in (files(__name__) / "static").iterdir():
        suffix = path.name[path.name.rfind(".") :]
        if suffix in _MEDIA_TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            static[path.name] = _File(content, _MEDIA_TYPES[suffix], etag)
    return static


def _answer(file: _File, request: Request) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
