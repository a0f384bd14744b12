"""The endpoint of an OpenAI API: one WebSocket route, and 404 for all other routes of the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.connection import SUBPROTOCOL, Connection
from gateway.api.openai.errors import OpenAIError, response, translate
from gateway.errors import GatewayError, TryLater
from gateway.session.admission import Slot
from gateway.session.caller import Caller
from gateway.session.live import TransportClosed
from gateway.session.runtime import Runtime
from gateway.telemetry.metrics import Api

Serve = Callable[[Connection, Runtime, Caller, Slot | None], Awaitable[None]]
"""Serves an accepted connection, for which a slot may be reserved, and closes it. May raise TransportClosed."""


Check = Callable[[Connection, Runtime], Awaitable[None]]
"""Checks a connection before it is accepted. Raises OpenAIError or GatewayError, which are answered by HTTP."""


@dataclass(frozen=True, slots=True)
class OpenAIApi:
    """An OpenAI API: one WebSocket route."""

    api: Api
    path: str
    prefix: str
    """Of all paths of the API, `path` among them."""
    serve: Serve
    subprotocol: str = SUBPROTOCOL
    """Chosen if it is offered."""
    check: Check | None = None
    always_reserves: bool = False
    """Whether a slot is reserved before the connection is accepted whatever the setting `accept_when_full`."""


def router(runtime: Runtime, api: OpenAIApi) -> APIRouter:
    """Make the routes of an API, to be included in an app."""
    path, prefix = api.path, api.prefix
    name = prefix.rpartition("/")[2]
    routes = APIRouter()
    routes.add_websocket_route(path, _Endpoint(runtime, api), name=name)  # type: ignore[arg-type]

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

    def __init__(self, runtime: Runtime, api: OpenAIApi) -> None:
        self._runtime = runtime
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. Never raises for what the client does."""
        api, runtime, settings = self._api, self._runtime, self._runtime.settings
        connection = Connection(scope, receive, send, settings.max_message_bytes)
        with suppress(TransportClosed), ExitStack() as reserved:
            slot = None
            try:
                caller = connection.authenticate(runtime, api.api)
                if api.check is not None:
                    await api.check(connection, runtime)
                # A session that is resumed has a slot.
                resumed = runtime.live_sessions.find(connection.resume_token, caller)
                if resumed is None and (api.always_reserves or not settings.accept_when_full):
                    # Clients may connect long before they start the session.
                    reservation = runtime.admission.reserve(caller, settings.handshake_seconds)
                    slot = reserved.enter_context(reservation)
            except GatewayError as refusal:
                retry_after = refusal.retry_after if isinstance(refusal, TryLater) else None
                await connection.deny(response(translate(refusal), refusal.http_status, retry_after))
                return
            except OpenAIError as refusal:
                await connection.deny(response(refusal, HTTPStatus.BAD_REQUEST))
                return
            await connection.accept(api.subprotocol)
            await api.serve(connection, runtime, caller, slot)


class _NoWebSocket:
    """ASGI application of WebSocket routes that this server has not."""

    def __init__(self, not_found: Callable[[str], Response]) -> None:
        self._not_found = not_found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(TransportClosed):
            await Connection(scope, receive, send, 0).deny(self._not_found(scope["path"]))
