"""uvicorn's WebSocket protocol for live sessions: bounded turns, tolerant keepalive, bounded closing.

It extends uvicorn's implementation, which the websockets library's Sans-I/O protocol backs:

* Received data is processed in turns, so that a flood of tiny frames does not occupy the event loop.
* A client that sends ahead of time is not read for a while, and neither is its pong: that does not end the session.
* The send buffer of the system is small, so that a client that does not read is detected soon. Such a client cannot
  keep a closed connection open.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio import BaseTransport
from time import perf_counter
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode
from websockets.http11 import Request

from gateway.api.disconnect import ABORT

# About a second of audio; Linux doubles it for its own use.
_SEND_BUFFER = 48_000
# After our close frame, the other side's must come.
_CLOSE_S = 5.0

# Data is processed in turns of 2 ms, with pauses. A piece takes up to 4 ms: 170 tiny frames of 10 to 25 us each.
_TURN_S = 0.002
_PAUSE_S = 0.005
_PIECE_BYTES = 1024


class CallProtocol(WebSocketsSansIOProtocol):
    """For `uvicorn.Config(ws=...)`; without permessage-deflate, which audio does not gain from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = bytearray()
        self._next_turn: asyncio.TimerHandle | None = None
        self._received_data = False

    def connection_made(self, transport: BaseTransport) -> None:
        """As uvicorn, with a small send buffer."""
        super().connection_made(transport)
        connected: socket.socket | None = transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn, which reports 1005 whether the client has sent a close frame without a code or none at all."""
        if self.conn.close_rcvd is None:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL_CLOSURE})
        super().connection_lost(exc)

    def handle_connect(self, event: Request) -> None:
        """As uvicorn, and offer the app a way to abort the connection."""
        super().handle_connect(event)
        if not self.close_sent:
            cast(dict[str, Any], self.scope["extensions"])[ABORT] = self.transport.abort

    def data_received(self, data: bytes) -> None:
        """As uvicorn, but in turns."""
        self._received_data = True
        self._unread += data
        if self._next_turn is None:
            self._take_turn()

    def _take_turn(self) -> None:
        """Process received data until it is used up or the turn has lasted long enough."""
        self._next_turn = None
        turn_ends = perf_counter() + _TURN_S
        while self._unread and not self.transport.is_closing():
            if self.handshake_initiated and not self.handshake_complete:
                # What follows the request waits until it is answered.
                return
            if perf_counter() > turn_ends:
                if not self.read_paused:
                    self.read_paused = True
                    self.transport.pause_reading()
                self._next_turn = self.loop.call_later(_PAUSE_S, self._take_turn)
                return
            piece = bytes(self._unread[:_PIECE_BYTES])
            del self._unread[:_PIECE_BYTES]
            super().data_received(piece)
        self._read_on()

    async def receive(self) -> Any:
        """As uvicorn, but reading goes on only if no data waits."""
        message = await self.queue.get()
        if self._next_turn is None:
            self._read_on()
        return message

    def _read_on(self) -> None:
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()

    async def send(self, message: Any) -> None:
        """As uvicorn, but bound the time until the client's close frame, and log no error for a refused handshake."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True
        if message["type"] == "websocket.accept" and self._next_turn is None:
            self._take_turn()
        if message["type"] == "websocket.close" and self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(_CLOSE_S, self.transport.abort)

    def send_keepalive_ping(self) -> None:
        """As uvicorn."""
        self._received_data = False
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        """Handle a missing pong. Other data shows that the client is alive; one that is not read cannot show it."""
        if (self._received_data or self.read_paused) and self.ping_timeout is not None:
            self._received_data = False
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self.transport.abort()
