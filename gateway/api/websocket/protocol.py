"""uvicorn's WebSocket protocol for live sessions: fast binary frames, tolerant keepalive, bounded closing.

It extends uvicorn's implementation, which the websockets library's Sans-I/O protocol backs:

* Unfragmented binary messages, which carry audio, are framed here.
* Frames are processed in turns, so that a flood of tiny ones does not occupy the event loop.
* A client that sends ahead of time is not read for a while, and neither is its pong: that does not end the session.
* The send buffer of the system is small, so that a client that does not read is detected soon. Such a client cannot
  keep a closed connection open.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from asyncio import BaseTransport
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN

from gateway.api.disconnect import ABORT

try:
    from websockets.speedups import apply_mask
except ImportError:  # not compiled on this platform
    from websockets.utils import apply_mask

# About a second of audio; Linux doubles it for its own use.
_SEND_BUFFER = 48_000
# After our close frame, the other side's must come.
_CLOSE_S = 5.0

# The library takes 10 to 25 us per frame. A turn of 1.6 ms, then a pause. A usual client sends 50 frames a second.
_FRAMES_PER_TURN = 64
_PAUSE_S = 0.005

# RFC 6455 section 5.2.
_FINAL, _MASKED, _LENGTH, _OPCODE = 0x80, 0x80, 0x7F, 0x0F
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_WHOLE_BINARY = _FINAL | Opcode.BINARY
_WHOLE_TEXT = _FINAL | Opcode.TEXT


class CallProtocol(WebSocketsSansIOProtocol):
    """For `uvicorn.Config(ws=...)`; without permessage-deflate, which audio does not gain from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rest = bytearray()
        self._next_turn: asyncio.TimerHandle | None = None
        self._library_only = bool(self.config.ws_per_message_deflate)
        self._fragmented = False
        self._received_data = False

    def connection_made(self, transport: BaseTransport) -> None:
        """As uvicorn, with a small send buffer."""
        super().connection_made(transport)
        connected: socket.socket | None = transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def handle_connect(self, event: Request) -> None:
        """As uvicorn, and offer the app a way to abort the connection."""
        super().handle_connect(event)
        if not self.close_sent:
            cast(dict[str, Any], self.scope["extensions"])[ABORT] = self.transport.abort

    def data_received(self, data: bytes) -> None:
        """Pass audio frames to the app and all others, whole, to the library."""
        self._received_data = True
        if self._library_only or not self.handshake_initiated:
            super().data_received(data)
        elif self._rest or not self.handshake_complete:
            # More than the request waits until it is answered.
            self._rest += data
            if self.handshake_complete and self._next_turn is None:
                self._take_turn()
        else:
            done, more = self._frames_of(data)
            self._rest += data[done:]
            if more:
                self._end_turn()

    def _take_turn(self) -> None:
        """Process frames that wait."""
        self._next_turn = None
        if self.disconnected:
            return
        done, more = self._frames_of(self._rest)
        del self._rest[:done]
        if more:
            self._end_turn()
        elif self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()

    def _end_turn(self) -> None:
        """Leave the other frames for later, and do not read more until then."""
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()
        self._next_turn = self.loop.call_later(_PAUSE_S, self._take_turn)

    async def receive(self) -> Any:
        """As uvicorn, but reading goes on only if no frames wait."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty() and self._next_turn is None:
            self.read_paused = False
            self.transport.resume_reading()
        return message

    def _frames_of(self, data: bytes | bytearray) -> tuple[int, bool]:
        """Process whole frames at the beginning of `data`, one turn at most.

        Returns their length in bytes, and whether the turn ended before the frames.
        """
        at, size = 0, len(data)
        for _ in range(_FRAMES_PER_TURN):
            if size - at < 2:
                return at, False
            first, second = data[at], data[at + 1]
            length, body = second & _LENGTH, at + 2
            if length >= _TWO_BYTES:
                body += 2 if length == _TWO_BYTES else 8
                if size < body:
                    return at, False
                length = int.from_bytes(data[at + 2 : body], "big")
            if not second & _MASKED or length > self.config.ws_max_size:
                # The library reports the error and reads no more.
                self._library_only = True
                super().data_received(bytes(data[at:]))
                return size, False
            end = body + 4 + length
            if size < end:
                return at, False
            if first == _WHOLE_BINARY and not self._fragmented and self.conn.state is OPEN:
                self.frames = [apply_mask(bytes(data[body + 4 : end]), bytes(data[body : body + 4]))]
                self.curr_msg_data_type = "bytes"
                self.send_receive_event_to_app()
            else:
                if first & _OPCODE <= Opcode.BINARY:
                    self._fragmented = not first & _FINAL
                super().data_received(bytes(data[at:end]))
            at = end
        return at, at < size

    async def send(self, message: Any) -> None:
        """As uvicorn, but write messages of an open connection directly."""
        if message["type"] == "websocket.send" and self._may_send():
            data, first = message.get("bytes"), _WHOLE_BINARY
            if data is None:
                data, first = message["text"].encode(), _WHOLE_TEXT
            size = len(data)
            if size < _TWO_BYTES:
                head = bytes((first, size))
            elif size < 1 << 16:
                head = struct.pack("!BBH", first, _TWO_BYTES, size)
            else:
                head = struct.pack("!BBQ", first, _EIGHT_BYTES, size)
            self.transport.write(head + data)
            return
        await super().send(message)
        if message["type"] == "websocket.accept" and self._rest and self._next_turn is None:
            self._take_turn()
        if message["type"] == "websocket.close" and self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(_CLOSE_S, self.transport.abort)

    def _may_send(self) -> bool:
        return (
            self.writable.is_set()
            and self.handshake_complete
            and not self.close_sent
            and not self.disconnected
            and self.conn.state is OPEN
            and not self.config.ws_per_message_deflate
        )

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
