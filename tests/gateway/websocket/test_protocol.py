"""Our framing against the library's, over raw sockets: same bytes, same messages; and connections that are dead."""

from __future__ import annotations

import asyncio
import gc
import logging
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import thread_time
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.asyncio.client import connect

from gateway.api.disconnect import ABORT
from gateway.api.websocket.protocol import CallProtocol

LIMIT = 3000
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
BINARY, TEXT, CONTINUED, CLOSE, PING = 2, 1, 0, 8, 9


class App:
    """Sends every message back; waits before each read while `busy`."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.busy = asyncio.Event()
        self.busy.set()
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await self.busy.wait()
                message = await receive()
                self.got.append(message)
                if message["type"] == "websocket.disconnect":
                    return
                await send({**message, "type": "websocket.send"})
        finally:
            self.ended.set()


@asynccontextmanager
async def serving(protocol: Any, app: Any, **options: Any) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app, ws=protocol, ws_max_size=LIMIT, ws_per_message_deflate=False, lifespan="off", log_config=None, **options
    )
    config.load()
    state = ServerState()
    # uvicorn passes a WebSocket on with its request; the test sends it directly.
    server = await asyncio.get_running_loop().create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()


def frame(opcode: int, payload: bytes, *, final: bool = True, mask: bytes = b"\x12\x34\x56\x78", rsv: int = 0) -> bytes:
    """A client's frame, by the RFC."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + struct.pack("!H", size)
    else:
        length = b"\xff" + struct.pack("!Q", size)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return bytes([final << 7 | rsv << 4 | opcode]) + length + mask + masked


async def exchange(protocol: Any, pieces: list[bytes], right: bool) -> tuple[list[dict[str, Any]], bytes]:
    """Messages that the app received, and bytes returned after the handshake."""
    app = App()
    async with serving(protocol, app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        back = b""
        with suppress(OSError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                # So that pieces arrive separately.
                await asyncio.sleep(0)
            writer.write(frame(PING, b"the end"))
            writer.write(frame(CLOSE, struct.pack("!H", 1000)))
            # Invalid data may look like the beginning of an incomplete frame.
            async with asyncio.timeout(5 if right else 0.2):
                while part := await reader.read(65536):
                    back += part
        writer.close()
        async with asyncio.timeout(5):
            await app.ended.wait()
    return app.got, back


whole = st.builds(
    frame,
    st.sampled_from([BINARY, BINARY, BINARY, TEXT, PING]),
    st.text(max_size=30).map(str.encode),
    mask=st.binary(min_size=4, max_size=4),
)
audio = st.builds(frame, st.just(BINARY), st.integers(0, LIMIT).map(lambda size: (b"pcm" * LIMIT)[:size]))
fragments = st.lists(st.binary(max_size=300), min_size=2, max_size=4).map(
    lambda parts: b"".join(
        frame(CONTINUED if at else BINARY, part, final=at == len(parts) - 1) for at, part in enumerate(parts)
    )
)
wrong = st.one_of(
    st.binary(min_size=1, max_size=30),
    st.just(frame(BINARY, b"x" * (LIMIT + 1))),
    st.just(frame(BINARY, b"x" * 70_000)),
    st.just(frame(BINARY, b"x", rsv=4)),
    st.just(frame(CONTINUED, b"x")),
    st.just(frame(TEXT, b"\xff\xfe")),
    st.just(frame(BINARY, b"x", final=False) + frame(BINARY, b"y")),
    st.just(b"\x82\x01x"),
    st.just(b"\x82\xff" + b"\xff" * 8),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.one_of(whole, audio, fragments), min_size=1, max_size=8),
    st.one_of(st.none(), wrong),
    st.sampled_from([1, 3, 1000, 1 << 20]),
)
def test_the_split_of_the_bytes_does_not_matter(frames: list[bytes], last: bytes | None, size: int) -> None:
    stream = b"".join(frames) + (last or b"")
    size = max(size, len(stream) // 300)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    ours = asyncio.run(exchange(CallProtocol, pieces, last is None))
    theirs = asyncio.run(exchange(WebSocketsSansIOProtocol, pieces, last is None))
    logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)
    mine, his = ([message for message in got if message["type"] == "websocket.receive"] for got, _ in (ours, theirs))
    if last is None:
        assert mine == his
        assert sorted(ours[1]) == sorted(theirs[1])
    else:
        # The library discards valid data that arrived together with invalid data.
        assert mine[: len(his)] == his


async def test_messages_sent_before_the_handshake_is_complete_arrive_after_it() -> None:
    class Slow(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0.1)
            await super().__call__(scope, receive, send)

    app = Slow()
    async with serving(CallProtocol, app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await asyncio.sleep(0.02)
        for number in range(200):
            writer.write(frame(BINARY, bytes([number])))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(CLOSE, struct.pack("!H", 1000)))
        async with asyncio.timeout(5):
            await app.ended.wait()
        writer.close()
    assert [message["bytes"] for message in app.got[:-1]] == [bytes([number]) for number in range(200)]


async def longest_turn(protocol: Any, flood: bytes) -> float:
    """The most CPU time in seconds between two turns of the event loop, while 256 KiB of `flood` is processed."""
    app = App()
    app.got = deque(maxlen=1)  # type: ignore[assignment]
    async with serving(protocol, app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        draining = asyncio.create_task(reader.read(-1))
        writer.write(flood * (262_144 // len(flood)))
        writer.write(frame(TEXT, b"last"))
        longest = 0.0
        gc.disable()
        try:
            async with asyncio.timeout(60):
                while not any(message.get("text") == "last" for message in app.got):
                    before = thread_time()
                    await asyncio.sleep(0)
                    longest = max(longest, thread_time() - before)
        finally:
            gc.enable()
        writer.close()
        await draining
    return longest


@pytest.mark.parametrize("flood", [frame(BINARY, b""), frame(BINARY, b"x"), frame(TEXT, b"{}"), frame(PING, b"")])
async def test_a_flood_of_tiny_frames_leaves_the_event_loop_to_others(flood: bytes) -> None:
    assert await longest_turn(CallProtocol, flood) < 0.02


async def test_a_large_message_is_sent_in_one_frame() -> None:
    class Large(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            for size in (0, 125, 126, 65_535, 65_536, 100_000):
                await send({"type": "websocket.send", "bytes": b"x" * size})
            await send({"type": "websocket.send", "text": "é" * 100})
            await send({"type": "websocket.close", "code": 1000})

    async with serving(CallProtocol, Large()) as port, connect(f"ws://127.0.0.1:{port}", proxy=None) as client:
        got = [message async for message in client]
    assert [len(message) for message in got] == [0, 125, 126, 65_535, 65_536, 100_000, 100]


async def handshaken(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def test_a_silent_peer_is_disconnected() -> None:
    app = App()
    async with serving(CallProtocol, app, ws_ping_interval=0.05, ws_ping_timeout=0.1) as port:
        _, writer = await handshaken(port)
        async with asyncio.timeout(5):
            await app.ended.wait()
        writer.close()


async def test_a_peer_that_sends_data_but_no_pong_stays_connected() -> None:
    app = App()
    async with serving(CallProtocol, app, ws_ping_interval=0.05, ws_ping_timeout=0.1) as port:
        _, writer = await handshaken(port)
        for _ in range(40):
            writer.write(frame(BINARY, b"x"))
            await asyncio.sleep(0.02)
        assert not app.ended.is_set()
        writer.close()
        async with asyncio.timeout(5):
            await app.ended.wait()


async def test_an_unread_pong_does_not_disconnect_the_peer() -> None:
    app = App()
    async with serving(CallProtocol, app, ws_ping_interval=0.05, ws_ping_timeout=0.1) as port:
        _, writer = await handshaken(port)
        app.busy.clear()
        for _ in range(3):
            writer.write(frame(BINARY, b"x"))
        await asyncio.sleep(0.6)
        assert not app.ended.is_set()
        app.busy.set()
        async with asyncio.timeout(5):
            await app.ended.wait()
        assert [message.get("bytes") for message in app.got[:3]] == [b"x"] * 3
        writer.close()


async def test_an_unanswered_close_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.api.websocket.protocol._CLOSE_S", 0.1)

    async def close(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})

    async with serving(CallProtocol, close) as port:
        reader, writer = await handshaken(port)
        async with asyncio.timeout(5):
            assert await reader.readexactly(4) == b"\x88\x02\x03\xe8"
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()


async def test_the_app_can_abort_a_blocked_connection() -> None:
    cut = asyncio.Event()

    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                while True:
                    await send({"type": "websocket.send", "bytes": bytes(100_000)})
        scope["extensions"][ABORT]()
        assert (await receive())["type"] == "websocket.disconnect"
        cut.set()

    async with serving(CallProtocol, stuck) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(REQUEST)
        async with asyncio.timeout(5):
            await cut.wait()
        del reader
        writer.close()
