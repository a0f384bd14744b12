"""The endpoint of an OpenAI API: one WebSocket route, and 404 for all other routes of the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from http import HTTPStatus

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.connection import SUBPROTOCOL, Connection
from gateway.api.openai.errors import OpenAIError, response, translate
from gateway.errors import GatewayError, TryLater
from gateway.session.admission import Slot
from gateway.session.keys import KeyHolder
from gateway.session.live import TransportClosed
from gateway.session.runtime import Runtime

Serve = Callable[[Connection, Runtime, KeyHolder | None, Slot | None], Awaitable[None]]
"""Serves an accepted connection, for which a slot may be reserved, and closes it. May raise TransportClosed."""


def router(runtime: Runtime, path: str, prefix: str, serve: Serve, subprotocol: str = SUBPROTOCOL) -> APIRouter:
    """Make the routes of an API, to be included in an app.

    `prefix`: of all its paths, `path` among them. `subprotocol`: chosen if it is offered.
    """
    name = prefix.rpartition("/")[2]
    routes = APIRouter()
    routes.add_websocket_route(path, _Endpoint(runtime, serve, subprotocol), name=name)  # type: ignore[arg-type]

    def not_found(asked: str) -> Response:
        message = f"{asked}: this server has {path} only, as a WebSocket"
        return response(OpenAIError("not_found", message), HTTPStatus.NOT_FOUND)

    async def no_route(request: Request) -> Response:
        return not_found(request.url.path)

    for each in (path, f"{prefix}/{{rest:path}}"):
        routes.add_route(each, no_route, ["GET", "POST", "DELETE"], include_in_schema=False)
    others = _NoWebSocket(not_found)
    routes.add_websocket_route(f"{prefix}/{{rest:path}}", others, name=f"{name}-other")  # type: ignore[arg-type]
    return routes


class _Endpoint:
    """ASGI application of the route."""

    def __init__(self, runtime: Runtime, serve: Serve, subprotocol: str) -> None:
        self._runtime = runtime
        self._serve = serve
        self._subprotocol = subprotocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. Never raises for what the client does."""
        runtime, settings = self._runtime, self._runtime.settings
        connection = Connection(scope, receive, send, settings.max_message_bytes)
        with suppress(TransportClosed), ExitStack() as reserved:
            slot = None
            try:
                key = connection.authenticate(runtime)
                if not settings.accept_when_full:
                    # Clients may connect long before they start the session.
                    reservation = runtime.admission.reserve(key, settings.handshake_seconds)
                    slot = reserved.enter_context(reservation)
            except GatewayError as refusal:
                retry_after = refusal.retry_after if isinstance(refusal, TryLater) else None
                await connection.deny(response(translate(refusal), refusal.http_status, retry_after))
                return
            await connection.accept(self._subprotocol)
            await self._serve(connection, runtime, key, slot)


class _NoWebSocket:
    """ASGI application of WebSocket routes that this server has not."""

    def __init__(self, not_found: Callable[[str], Response]) -> None:
        self._not_found = not_found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(TransportClosed):
            await Connection(scope, receive, send, 0).deny(self._not_found(scope["path"]))
