"""The web page at `/`: static files of this package and the built TypeScript client, without external resources."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

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

# Only the page's own files and server. blob: is the recording of the call, which the page can play.
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
    # Revalidated at each load, so that page and server have the same version.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def router() -> APIRouter:
    """Return the routes of the page: `/`, its files below `/page/` and the client's below `/page/client/`."""
    routes = APIRouter()
    static, client = _read(files(__name__) / "static"), _read(files("gateway") / "client-ts" / "dist")

    async def index(request: Request) -> Response:
        return _answer(static[INDEX], request)

    def assets(available: dict[str, _File]) -> Callable[[Request], Awaitable[Response]]:
        async def asset(request: Request) -> Response:
            file = available.get(request.path_params["name"])
            return Response("no such file\n", 404) if file is None else _answer(file, request)

        return asset

    # Not part of the REST API.
    routes.add_route("/", index, include_in_schema=False)
    routes.add_route("/page/{name}", assets(static), include_in_schema=False)
    routes.add_route("/page/client/{name}", assets(client), include_in_schema=False)
    return routes


def _read(folder: Traversable) -> dict[str, _File]:
    """Return all files of a folder by name. Requests can name these only."""
    static = {}
    for path in folder.iterdir():
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
