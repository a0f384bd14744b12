"""The gateway's HTTP server: uvicorn, which lets conversations end before it closes their connections."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from gateway.api.rest.protocol import AnswerProtocol
from gateway.api.websocket.protocol import CallProtocol
from gateway.session.runtime import Runtime
from gateway.settings import Settings

# Once no conversation is left, only answers on their way out to slow readers are under way.
_LAST_ANSWERS_S = 5
# A WebSocket whose other side vanished without a word is noticed after both.
_PING_S, _PONG_S = 10.0, 20.0


class GatewayServer(uvicorn.Server):
    """Serves an app of `create_app`, over TLS if the settings say so; to be run in a thread or in the main one.

    uvicorn by itself closes every live WebSocket the moment it is told to exit, and gRPC calls are none of its
    business. Here both, and answers under way, have the settings' drain time first, and are then ended with a reason.
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
                http=AnswerProtocol,
                ws=CallProtocol,
                ws_max_size=settings.max_message_bytes,
                ws_ping_interval=_PING_S,
                ws_ping_timeout=_PONG_S,
                ws_per_message_deflate=False,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
            )
        )
        self._runtime: Runtime = app.state.runtime
        self._hurried = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does; from now on it can be hurried."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        # What there is now stays: a full collection that went through it again would hold up every call's frame.
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Conversations first, then connections, then the app."""
        self._runtime.begin_drain()
        if self._hurried:
            self._runtime.hurry_drain()
        await self._runtime.drain()
        await super().shutdown(sockets)
        if self.force_exit:
            # Forced, uvicorn leaves this out.
            await self.lifespan.shutdown()

    def hurry(self) -> None:
        """From any thread or signal handler: cut the stop short that is under way, or the next one."""
        self._hurried = True
        # Cut short, uvicorn complains of tasks that were cancelled: that is what was asked for.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.force_exit = True
        if self._loop is not None:
            # It may have ended by now.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._runtime.hurry_drain)
