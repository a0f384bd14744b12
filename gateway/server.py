"""The gateway's HTTP server: uvicorn, extended to drain sessions before it closes their connections."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from gateway.admin_address import admin_address
from gateway.api.admin.server import AdminServer, CannotListen
from gateway.api.rest.protocol import AnswerProtocol
from gateway.api.websocket.protocol import CallProtocol
from gateway.certificate import server_context
from gateway.session.runtime import Runtime
from gateway.settings import Settings

logger = logging.getLogger(__name__)

# After the drain, only answers to slow readers are in flight.
_LAST_ANSWERS_S = 5
# A WebSocket whose peer is gone without a close is detected after the sum of both.
_PING_S, _PONG_S = 10.0, 20.0


class GatewayServer(uvicorn.Server):
    """Serve an app of `create_app`, with TLS if the settings have it, and the operator API beside it.

    uvicorn alone closes every WebSocket at once when it exits, and does not know gRPC sessions. This server gives both,
    and answers in flight, the drain time of the settings, and then ends them with a reason.
    """

    def __init__(self, app: FastAPI, settings: Settings, *, log_level: str | None = None) -> None:
        tls = settings.tls
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                log_level=log_level,
                lifespan="on",
                server_header=False,
                timeout_graceful_shutdown=_LAST_ANSWERS_S,
                http=AnswerProtocol.limited_to(settings.max_connections),
                ws=CallProtocol,
                ws_max_size=settings.max_message_bytes,
                ws_ping_interval=_PING_S,
                ws_ping_timeout=_PONG_S,
                ws_per_message_deflate=False,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
                ssl_context_factory=(lambda _, make: server_context(tls, make)) if tls else None,
            )
        )
        self.admin: AdminServer | None = None
        """The operator API, once started; None if it is disabled or cannot listen."""
        self._settings = settings
        self._runtime: Runtime = app.state.runtime
        self._hurried = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the public listener, then the operator API."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.should_exit:
            return
        self.started = False
        await self._start_admin()
        self.started = True
        # Exempt what exists now from full collections, which would delay every session's frame.
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End sessions, then close connections, then stop the app."""
        self._runtime.sessions.begin_drain()
        if self._hurried:
            self._runtime.sessions.hurry_drain()
        await self._runtime.sessions.drain()
        if self.admin is not None:
            await self.admin.stop()
        await super().shutdown(sockets)
        if self.force_exit:
            # uvicorn omits this when the exit is forced.
            await self.lifespan.shutdown()

    def hurry(self) -> None:
        """Cut the current or next shutdown short. Safe from any thread and from signal handlers."""
        self._hurried = True
        # uvicorn logs cancelled tasks as errors; here they are intended.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.force_exit = True
        if self._loop is not None:
            # The loop may have ended.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._runtime.sessions.hurry_drain)

    async def _start_admin(self) -> None:
        listener = self.servers[0].sockets[0]
        address = admin_address(self._settings.admin_listen, listener.getsockname()[1])
        if address is None:
            return
        admin = AdminServer(self._runtime, address)
        try:
            await admin.start()
        except CannotListen as error:
            if self._settings.admin_listen is None:
                logger.warning("%s; set admin_listen", error.message)
                return
            logger.error("%s", error.message)
            self.should_exit = True
            return
        self.admin = admin
