"""The endpoint of a live WebSocket API: accept, authenticate, run the session, report its end, close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress

from starlette.types import Receive, Scope, Send

from gateway.api.connection import Connection
from gateway.errors import GatewayError
from gateway.session.events import Event, Reason
from gateway.session.input_queue import InputQueue
from gateway.session.limits import LiveLimits
from gateway.session.live import TransportClosed, open_live_session
from gateway.session.params import LiveParams
from gateway.session.request import persona, sampling_params
from gateway.session.runtime import Runtime

# Failures are sent as an error, with this code, before the end of the session.
FAILURE_CODES = {
    Reason.SLOW_CLIENT: "slow-client",
    Reason.ENGINE: "engine-error",
    Reason.ERROR: "internal-error",
}


class WebSocketTransport(ABC):
    """The messages of one WebSocket API on one connection. See `LiveTransport`."""

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
        with suppress(TransportClosed):
            await connection.accept()
            try:
                key = connection.authenticate(runtime)
                params = await transport.handshake()
                agent, sampling = persona(params, runtime), sampling_params(params, runtime)
                on_gap, limits = params.on_gap or "wait", transport.limits()
                async with open_live_session(runtime, agent, sampling, on_gap, key, limits) as session:
                    ended = await session.run(transport)
            except GatewayError as refusal:
                await transport.send_error(refusal.code, refusal.message)
                await connection.close(refusal.close_code, refusal.message)
                return
            # The slot is free before the close frame is sent, so that the client may reconnect at once.
            error = ended.error if ended.reason is Reason.CLIENT_ERROR else None
            await connection.close(error.close_code if error else ended.reason.close_code, ended.message)
