"""Ids and traces of HTTP requests and WebSockets."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.telemetry.requests import HEADER, begin_request


class Requests:
    """ASGI middleware: each request has an id, which its response states. `Connection` states it for WebSockets."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        identifier = begin_request(Headers(scope=scope))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (HEADER.encode(), identifier.encode())]
            await send(message)

        # Messages of WebSockets pass without a further call for each.
        await self._app(scope, receive, send_with_id if scope["type"] == "http" else send)
