"""A live conversation over the WebSocket /v1/converse.

It implements the part of RFC 6455 that such a client needs, to use little CPU: frames are masked once, before the run,
and of received messages only what the statistics need is parsed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from loadtest.apis import OnFrame
from loadtest.plan import Plan
from loadtest.record import CallFailed, Malformed, Refused
from loadtest.speech import FRAME_SIZE, RATE, Speech

PATH = "/v1/converse"
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_FINAL, _MASKED = 0x80, 0x80
# The mask protects proxies from content that browsers send; a constant key is good enough here.
_KEY = b"\x37\xfa\x21\x3d"
_COMPLETED, _TRY_LATER = 1000, 1013
_FULL = "503"
"""Status of a refused upgrade that may be tried again."""


class WebSocketClient(asyncio.Protocol):
    """See LiveClient."""

    def __init__(self, plan: Plan, speech: Speech, seed: int, on_frame: OnFrame) -> None:
        self._plan = plan
        self._on_frame = on_frame
        self._start = json.dumps({"type": "start", "seed": seed, "audio": {"format": "pcm_s16le", "sample_rate": RATE}})
        self._frames = [masked(_BINARY, frame) for frame in speech.frames]
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._close_code: asyncio.Future[int] = loop.create_future()
        for future in (self._ready, self._close_code):
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._received = bytearray()
        self._upgraded = False
        self._index = 0
        self._error = ""
        self._broken: CallFailed | Refused | None = None
        self._ended: dict[str, Any] | None = None
        self._disconnect: Callable[[], None] = lambda: None
        self._writable = asyncio.Event()
        self._writable.set()

    async def open(self) -> None:
        server = urlsplit(self._plan.server)
        host = server.hostname or ""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, host, server.port or 80)
        except OSError as error:
            raise CallFailed(f"cannot connect to {self._plan.server}: {error.strerror or error}") from None
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        access = f"Authorization: Bearer {self._plan.api_key}\r\n" if self._plan.api_key else ""
        self._write(
            f"GET {PATH} HTTP/1.1\r\nHost: {server.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{access}\r\n".encode()
        )
        await self._ready

    async def send(self, u: int) -> None:
        if not self._writable.is_set():
            await self._writable.wait()
        if self._close_code.done():
            raise self._failure()
        self._write(self._frames[u % len(self._frames)])

    async def finish(self) -> tuple[int, int]:
        self._write(masked(_TEXT, b'{"type":"end"}'))
        if await self._close_code != _COMPLETED:
            raise self._failure()
        ended = self._ended
        if ended is None or ended["reason"] != "completed":
            raise Malformed("closed as completed without an `ended` message of reason completed")
        return int(ended["dropped_frames"]), int(ended["late_frames"])

    def close(self) -> None:
        self._disconnect()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """For asyncio."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's can write
        self._disconnect = transport.close

    def connection_lost(self, exc: Exception | None) -> None:
        """For asyncio."""
        # After a close message its code is the better reason.
        if not self._close_code.done():
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
        self._write(masked(_TEXT, self._start.encode()))

    def _message(self, first: int, payload: bytes) -> None:
        if not first & _FINAL:
            raise Malformed("a fragmented message")
        kind = first & 0x7F
        if kind == _BINARY:
            if not self._ready.done():
                raise Malformed("audio before ready")
            index, self._index = self._index, self._index + 1
            self._on_frame(index, len(payload))
        elif kind == _TEXT:
            self._on_text(json.loads(payload))
        elif kind == _PING:
            self._write(masked(_PONG, payload))
        elif kind == _CLOSE:
            self._write(masked(_CLOSE, payload[:2]))
            code = int.from_bytes(payload[:2], "big")
            self._on_close(code, payload[2:].decode(errors="replace"))
        elif kind != _PONG:
            raise Malformed(f"a message of kind {first:#x}")

    def _on_text(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "ready" and not self._ready.done():
            audio = message["audio"]
            if (audio["format"], audio["sample_rate"], message["frame_size"]) != ("pcm_s16le", RATE, FRAME_SIZE):
                raise Malformed(f"unexpected audio format: {audio}, {message['frame_size']} samples per frame")
            self._ready.set_result(None)
        elif kind == "ended":
            self._ended = message
        elif kind == "error":
            self._error = str(message["message"])
        elif kind not in ("text", "stats", "warning"):
            raise Malformed(f"an unexpected message: {kind}")

    def _on_close(self, code: int, reason: str) -> None:
        self._close_code.set_result(code)
        self._writable.set()
        if not self._ready.done():
            self._ready.set_exception(self._failure(reason))

    def _failure(self, reason: str = "") -> CallFailed | Refused:
        if self._broken is not None:
            return self._broken
        code = self._close_code.result()
        message = self._error or (self._ended or {}).get("message") or reason
        return Refused(message) if code == _TRY_LATER else CallFailed(f"closed with {code}: {message}")

    def _fail(self, error: CallFailed | Refused) -> None:
        self._broken = self._broken or error
        for future in (self._ready, self._close_code):
            if not future.done():
                future.set_exception(error)
        self._writable.set()
        self.close()

    def _write(self, data: bytes) -> None:
        self._transport.write(data)


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
