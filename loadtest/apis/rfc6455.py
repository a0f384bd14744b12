"""The WebSocket of a user: the part of RFC 6455 that such a client needs, to use little CPU.

Messages are masked once, before the run, and of received messages only what the statistics need is parsed.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from loadtest.plan import Plan, address
from loadtest.record import CallFailed, Malformed, Refused

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_FINAL, _MASKED = 0x80, 0x80
# The mask protects proxies from content that browsers send; a constant key is good enough here.
_KEY = b"\x37\xfa\x21\x3d"
COMPLETED, _TRY_LATER = 1000, 1013
_FULL = "503"


class WebSocketConnection(asyncio.Protocol, ABC):
    """One connection. A protocol sends its start in `on_upgraded` and sets `ready` when the server is."""

    path: ClassVar[str]

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.close_code: asyncio.Future[int] = loop.create_future()
        for future in (self.ready, self.close_code):
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.error = ""
        """What the server has said about the failure."""
        self._received = bytearray()
        self._upgraded = False
        self._broken: CallFailed | Refused | None = None
        self._disconnect: Callable[[], None] = lambda: None
        self._writable = asyncio.Event()
        self._writable.set()

    @abstractmethod
    def on_upgraded(self) -> None:
        """The handshake is complete."""

    @abstractmethod
    def on_text(self, message: bytes) -> None:
        """A text message has arrived."""

    def on_binary(self, message: bytes) -> None:
        """A binary message has arrived."""
        raise Malformed("a binary message")

    async def open(self) -> None:
        """Connect and wait until the server is ready. Raises Refused or CallFailed."""
        server = address(self._plan.server)
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, server.host, server.port, ssl=server.tls)
        except OSError as error:
            raise CallFailed(f"cannot connect to {self._plan.server}: {error.strerror or error}") from None
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        access = f"Authorization: Bearer {self._plan.api_key}\r\n" if self._plan.api_key else ""
        self.write(
            f"GET {server.path}{self.path} HTTP/1.1\r\nHost: {server.authority}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{access}\r\n".encode()
        )
        await self.ready

    async def send_message(self, frame: bytes) -> None:
        """Send a masked message; return once the transport accepts it. Raises Refused or CallFailed."""
        if not self._writable.is_set():
            await self._writable.wait()
        if self.close_code.done():
            raise self.failure()
        self.write(frame)

    def close(self) -> None:
        """Close the connection."""
        self._disconnect()

    def write(self, data: bytes) -> None:
        """Write masked messages."""
        self._transport.write(data)

    def failure(self, reason: str = "") -> CallFailed | Refused:
        """Why the connection has ended."""
        if self._broken is not None:
            return self._broken
        code, message = self.close_code.result(), self.error or reason
        return Refused(message) if code == _TRY_LATER else CallFailed(f"closed with {code}: {message}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """For asyncio."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's can write
        self._disconnect = transport.close

    def connection_lost(self, exc: Exception | None) -> None:
        """For asyncio."""
        # After a close message its code is the better reason.
        if not self.close_code.done():
            self._fail(CallFailed(f"the connection was lost: {exc}" if exc else "the server closed the connection"))

    def pause_writing(self) -> None:
        """For asyncio."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """For asyncio."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """For asyncio."""
        received = self._received
        received += data
        try:
            if not self._upgraded:
                self._upgrade()
            while self._upgraded and len(received) >= 2:
                at, length = 2, received[1]
                if length == 126:
                    at, length = 4, int.from_bytes(received[2:4], "big")
                elif length == 127:
                    at, length = 10, int.from_bytes(received[2:10], "big")
                if len(received) < at + length:
                    break
                kind, payload = received[0], bytes(received[at : at + length])
                del received[: at + length]
                self._message(kind, payload)
        except (CallFailed, Refused) as error:
            self._fail(error)
        except (ValueError, KeyError, TypeError) as error:
            self._fail(Malformed(f"a message that the protocol does not define: {error!r}"))

    def _upgrade(self) -> None:
        head, found, _ = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        status = head.split(b"\r\n", 1)[0].decode(errors="replace")
        code = status.split(" ")[1:2]
        if code == [_FULL]:
            raise Refused(status)
        if code != ["101"]:
            raise CallFailed(f"the upgrade was refused: {status}")
        del self._received[: len(head) + 4]
        self._upgraded = True
        self.on_upgraded()

    def _message(self, first: int, payload: bytes) -> None:
        if not first & _FINAL:
            raise Malformed("a fragmented message")
        kind = first & 0x7F
        if kind == BINARY:
            self.on_binary(payload)
        elif kind == TEXT:
            self.on_text(payload)
        elif kind == PING:
            self.write(masked(PONG, payload))
        elif kind == CLOSE:
            self.write(masked(CLOSE, payload[:2]))
            self._on_close(int.from_bytes(payload[:2], "big"), payload[2:].decode(errors="replace"))
        elif kind != PONG:
            raise Malformed(f"a message of kind {first:#x}")

    def _on_close(self, code: int, reason: str) -> None:
        self.close_code.set_result(code)
        self._writable.set()
        self.error = self.error or reason
        if not self.ready.done():
            self.ready.set_exception(self.failure())

    def _fail(self, error: CallFailed | Refused) -> None:
        self._broken = self._broken or error
        for future in (self.ready, self.close_code):
            if not future.done():
                future.set_exception(error)
        self._writable.set()
        self.close()


def masked(kind: int, payload: bytes) -> bytes:
    """A complete masked frame, as a client sends it."""
    size = len(payload)
    if size < 126:
        head = bytes((_FINAL | kind, _MASKED | size))
    elif size < 65_536:
        head = bytes((_FINAL | kind, _MASKED | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | kind, _MASKED | 127)) + size.to_bytes(8, "big")
    keys = (_KEY * (size // 4 + 1))[:size]
    body = (int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")).to_bytes(size, "big")
    return head + _KEY + body
