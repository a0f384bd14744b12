"""The endpoint of a live WebSocket API: authenticate, reserve a slot, accept, run the session, close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from typing import ClassVar

from starlette.types import Receive, Scope, Send

from gateway.api import problems
from gateway.api.connection import Connection
from gateway.errors import GatewayError, TryLater
from gateway.session.events import Event, Reason
from gateway.session.input_queue import InputQueue
from gateway.session.limits import LiveLimits
from gateway.session.live import TransportClosed
from gateway.session.params import LiveParams
from gateway.session.request import run_live_session
from gateway.session.runtime import Runtime
from gateway.telemetry.metrics import Api

# Failures are sent as an error, with this code, before the end of the session.
FAILURE_CODES = {
    Reason.SLOW_CLIENT: "slow-client",
    Reason.ENGINE: "engine-error",
    Reason.ERROR: "internal-error",
}


class WebSocketTransport(ABC):
    """The messages of one WebSocket API on one connection. See `LiveTransport`."""

    api: ClassVar[Api]

    def __init__(self, connection: Connection, runtime: Runtime) -> None:
        self.connection = connection
        self.runtime = runtime

    @abstractmethod
    async def handshake(self) -> LiveParams:
        """Read the session's parameters. Raises GatewayError to reject them, TransportClosed."""

    @abstractmethod
    async def receive(self, audio: InputQueue) -> None:
        """Read messages until the client disconnects, which raises TransportClosed. Raises GatewayError."""

    @abstractmethod
    async def send(self, event: Event) -> None:
        """Send an event. Raises TransportClosed."""

    @abstractmethod
    async def send_error(self, code: str, message: str) -> None:
        """Send an error: `code` for programs, `message` for people. Raises TransportClosed."""

    def limits(self) -> LiveLimits:
        """Return the limits of the session."""
        return LiveLimits.of(self.runtime.settings)

    def abort(self) -> None:
        """Close the connection at once, without sending what is queued."""
        self.connection.abort()


class WebSocketEndpoint:
    """ASGI application for one WebSocket route."""

    def __init__(self, runtime: Runtime, transport: type[WebSocketTransport]) -> None:
        self._runtime = runtime
        self._transport = transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. Never raises for what the client does."""
        runtime = self._runtime
        connection = Connection(scope, receive, send, runtime.settings.max_message_bytes)
        transport = self._transport(connection, runtime)
        settings = runtime.settings
        with suppress(TransportClosed), ExitStack() as reserved:
            try:
                caller = connection.authenticate(runtime, transport.api)
                # A session that is resumed has a slot.
                resumed = runtime.live_sessions.find(connection.resume_token, caller)
                reserves = resumed is None and not settings.accept_when_full
                slot = reserved.enter_context(runtime.admission.reserve(caller)) if reserves else None
            except TryLater as refusal:
                await connection.deny(problems.response(refusal, settings.retry_after))
                return
            except GatewayError as refusal:
                await connection.accept()
                await _refuse(connection, transport, refusal)
                return
            await connection.accept()
            try:
                params = await transport.handshake()
                limits, token = transport.limits(), connection.resume_token
                ended = await run_live_session(transport, params, runtime, caller, limits, slot, token)
            except GatewayError as refusal:
                reserved.close()
                await _refuse(connection, transport, refusal)
                return
            # The slot is free before the close frame is sent, so that the client may reconnect at once.
            error = ended.error if ended.reason is Reason.CLIENT_ERROR else None
            await connection.close(error.close_code if error else ended.reason.close_code, ended.message)


async def _refuse(connection: Connection, transport: WebSocketTransport, refusal: GatewayError) -> None:
    """Report a refusal on an accepted connection, and close it. Raises TransportClosed."""
    await transport.send_error(refusal.code, refusal.message)
    await connection.close(refusal.close_code, refusal.message)
