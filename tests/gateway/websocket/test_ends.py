"""Rejections and ends of sessions of both WebSocket APIs: messages, close codes and slots."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import monotonic, perf_counter, sleep
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.gateway.websocket.conftest import END, FRAME, Server, receive_all, start
from tests.series import total

PATHS = ["/v1/converse", "/api/chat"]


async def error_and_close_code(client: ClientConnection) -> tuple[str | None, int | None]:
    """Return the error sent before the close, and the close code."""
    error = None
    try:
        async with asyncio.timeout(15):
            while True:
                message = await client.recv()
                if isinstance(message, str):
                    parsed = json.loads(message)
                    error = parsed["message"] if parsed["type"] == "error" else error
                elif message[:1] == b"\x05" and client.request is not None and "chat" in client.request.path:
                    error = message[1:].decode()
    except ConnectionClosed:
        return error, client.close_code


async def begin(client: ClientConnection) -> None:
    """Up to the first frame."""
    assert client.request is not None
    if "converse" in client.request.path:
        await client.send(start())
    async with asyncio.timeout(10):
        for _ in range(2):
            await client.recv()


@pytest.mark.parametrize("path", PATHS)
async def test_a_session_beyond_the_slots_is_rejected_and_may_retry(serve: Callable[..., Any], path: str) -> None:
    async with serve(slots=1) as server:
        async with server.connect(path) as first:
            await begin(first)
            began = perf_counter()
            async with server.connect(path) as second:
                if "converse" in path:
                    await second.send(start())
                error, code = await error_and_close_code(second)
            took = perf_counter() - began
            assert error is not None
            assert "all 1 conversations are taken" in error
            assert code == 1013
            assert took < 0.5
        await server.until_free()
        async with server.connect(path) as third:
            await begin(third)
        await server.until_free()


async def test_the_slot_is_free_when_the_client_sees_the_close(serve: Callable[..., Any]) -> None:
    """Also if the release of the models' rows takes a while."""
    async with serve(slots=1, delay=0.02) as server:
        for _ in range(5):
            async with server.connect() as client:
                await client.send(start())
                await client.send(END)
                received = await receive_all(client)
            assert received.code == 1000
            assert not received.of("error")


@pytest.mark.parametrize("path", PATHS)
async def test_a_draining_server_rejects_sessions(server: Server, path: str) -> None:
    server.runtime.admission.draining = True
    async with server.connect(path) as client:
        if "converse" in path:
            await client.send(start())
        error, code = await error_and_close_code(client)
    assert error is not None
    assert "shutting down" in error
    assert code == 1012


@pytest.mark.parametrize("path", PATHS)
async def test_sessions_end_with_drained_after_the_drain_time(serve: Callable[..., Any], path: str) -> None:
    async with serve(drain_seconds=0.2) as server, server.connect(path) as client:
        await begin(client)
        draining = asyncio.create_task(server.runtime.sessions.drain())
        await client.send(bytes(2 * FRAME))
        if "chat" in path:
            assert await error_and_close_code(client) == ("the server is shutting down", 1012)
        else:
            received = await receive_all(client)
            assert received.one("ended")["reason"] == "drained"
            assert received.code == 1012
        await draining


@pytest.mark.parametrize("path", PATHS)
async def test_a_failing_backend_ends_the_session(serve: Callable[..., Any], path: str) -> None:
    async with serve() as server, server.connect(path) as client:
        await begin(client)
        server.engine.down = True
        if "converse" in path:
            await client.send(bytes(2 * FRAME))
        else:
            for message in chat_audio():
                await client.send(message)
        error, code = await error_and_close_code(client)
        assert error is not None
        assert "the fake backend is down" in error
        assert code == 1011
        server.engine.down = False
        await server.until_free()


@pytest.mark.parametrize("path", PATHS)
async def test_an_unavailable_backend_is_reported(serve: Callable[..., Any], path: str) -> None:
    async with serve() as server:
        server.engine.down = True
        async with server.connect(path) as client:
            if "converse" in path:
                await client.send(start())
            error, code = await error_and_close_code(client)
        assert error == "the fake backend is down"
        assert code == 1011
        await server.until_free()


@pytest.mark.parametrize("path", PATHS)
async def test_no_audio_for_the_idle_time_ends_the_session(serve: Callable[..., Any], path: str) -> None:
    async with serve(idle_seconds=0.2) as server, server.connect(path) as client:
        await begin(client)
        if "chat" in path:
            assert await error_and_close_code(client) == ("no audio came for 0.2 s", 1001)
        else:
            received = await receive_all(client)
            assert received.one("ended")["reason"] == "idle"
            assert received.code == 1001
        await server.until_free()


async def test_a_warning_precedes_the_end_by_max_duration(serve: Callable[..., Any]) -> None:
    async with serve(max_call_seconds=1.0, warn_seconds=0.7) as server, server.connect() as client:
        await client.send(start(on_gap="silence"))
        received = await receive_all(client)
    warning = received.one("warning")
    assert warning["code"] == "max_duration"
    assert 0 < warning["seconds_left"] <= 0.7
    assert received.one("ended")["reason"] == "max_duration"
    assert received.code == 1001


async def test_a_client_that_never_starts_is_disconnected(serve: Callable[..., Any]) -> None:
    async with serve(handshake_seconds=0.2) as server, server.connect() as client:
        received = await receive_all(client)
    assert received.one("error")["code"] == "handshake-timeout"
    assert received.code == 1008


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_does_not_read_is_disconnected_and_frees_the_slot(
    serve: Callable[..., Any], path: str
) -> None:
    """A raw socket that sends all messages of a client, and then never reads."""
    async with serve(output_frames=10, max_call_seconds=3600) as server:
        sent = asyncio.create_task(asyncio.to_thread(never_read, server, path))
        async with asyncio.timeout(30):
            while not server.runtime.admission.taken:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await server.until_free()
        await sent


def never_read(server: Server, path: str) -> None:
    if "converse" in path:
        messages = [framed(start().encode(), 0x81), framed(bytes(2 * FRAME), 0x82)]
    else:
        messages = [framed(message, 0x82) for message in chat_audio(frames=10)]
    never_read_from(server, path, messages)


def never_read_from(server: Server, path: str, frames: list[bytes]) -> None:
    """Send frames, and the last one again and again, until the server closes the connection."""
    host, port = server.url.removeprefix("ws://").split(":")
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(20)
        raw.connect((host, int(port)))
        raw.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 101")
        deadline = monotonic() + 20
        with suppress(OSError):
            for number in count():
                raw.sendall(frames[min(number, len(frames) - 1)])
                assert monotonic() < deadline, "was never cut off"
                # The socket buffers of both sides are full long before.
                if number > 2000:
                    sleep(0.01)


def framed(payload: bytes, first: int) -> bytes:
    """A client's frame, masked with zeros."""
    assert len(payload) < 1 << 16
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([first]) + length + bytes(4) + payload


def chat_audio(frames: int = 3) -> list[bytes]:
    """Messages of kind 1: head and frames. The last one may be repeated."""
    import numpy as np

    from gateway.audio.ogg_opus import OggOpusWriter

    writer = OggOpusWriter()
    samples = np.random.default_rng(1).uniform(-0.3, 0.3, (frames, FRAME)).astype(np.float32)
    return [b"\x01" + writer.head(), *(b"\x01" + writer.write(frame) for frame in samples)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("when", ["connected", "begun", "talking"])
async def test_a_client_that_disconnects_leaves_nothing_behind(serve: Callable[..., Any], path: str, when: str) -> None:
    async with serve() as server:
        for _ in range(5):
            client = await server.connect(path)
            if when != "connected":
                await begin(client)
            if when == "talking":
                for message in chat_audio() if "chat" in path else [bytes(2 * FRAME)]:
                    await client.send(message)
            client.transport.abort()
            await server.until_free()
        if when != "connected":
            assert total(server.runtime.metrics, "personaplex_ended_total", reason="disconnected") == 5


@pytest.mark.parametrize("path", PATHS)
async def test_a_message_beyond_the_limit_ends_the_session(serve: Callable[..., Any], path: str) -> None:
    async with serve(max_message_bytes=10_000) as server, server.connect(path) as client:
        await begin(client)
        await client.send(b"\x01" * 10_001)
        _, code = await error_and_close_code(client)
        assert code == 1009
        await server.until_free()


async def test_abrupt_disconnects_log_nothing(serve: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """A client can cause no error on our side."""
    with caplog.at_level(logging.WARNING):
        async with serve() as server:
            for path in PATHS:
                client = await server.connect(path)
                await begin(client)
                client.transport.abort()
            await server.until_free()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
