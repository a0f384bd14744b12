"""Connections of the public HTTP port: how many, and how long each may take to send what it has to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from gateway.api.rest import protocol
from gateway.app import create_app
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.server import GatewayServer
from gateway.session.caller import Caller
from gateway.session.runtime import Runtime
from gateway.settings import Settings
from gateway.telemetry.metrics import Api

Serve = Callable[..., AbstractAsyncContextManager[tuple[int, Runtime]]]
HEAD = "POST /v1/respond HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"


@pytest.fixture
def serve(models: Path, manifest: Manifest, engine: FakeBackend) -> Serve:
    """Serves the fake engine while inside; yields the HTTP port and the runtime."""

    @asynccontextmanager
    async def serve(**settings: Any) -> AsyncIterator[tuple[int, Runtime]]:
        configured = Settings(models=models, **{"port": 0, "grpc_port": -1, "drain_seconds": 0, **settings})
        app = create_app(configured, engine, manifest)
        server = GatewayServer(app, configured)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            while not server.started:
                assert not serving.done()
                await asyncio.sleep(0.01)
            try:
                yield listener.getsockname()[1], app.state.runtime
            finally:
                server.hurry()
                server.should_exit = True
                await serving
        assert engine.opened == engine.closed

    return serve


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server has closed the connection without an answer."""
    async with asyncio.timeout(5):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


async def send_on(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(2**16))
        await writer.drain()
        await asyncio.sleep(0.01)


async def test_one_connection_too_many_is_closed_and_the_others_are_served(serve: Serve) -> None:
    async with serve(max_connections=16) as (port, _), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.get("/healthz")).status_code == 200
        others = [await connect(port) for _ in range(15)]
        for _ in range(3):
            reader, writer = await connect(port)
            assert await closed(reader)
            writer.close()
        assert (await client.get("/healthz")).status_code == 200
        for _, writer in others:
            writer.close()
        await asyncio.sleep(0.1)
        again, writer = await connect(port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await again.readline()
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost:"], ids=["nothing", "half of the headers"])
async def test_headers_that_do_not_arrive_in_time(serve: Serve, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(protocol, "_HEADERS_S", 0.2)
    async with serve() as (port, _):
        reader, writer = await connect(port)
        writer.write(sent)
        assert await closed(reader)
        writer.close()


async def test_a_body_that_does_not_arrive_in_time_is_a_408_and_frees_slot_and_bytes(serve: Serve) -> None:
    async with serve(upload_seconds=0.3) as (port, runtime):
        reader, writer = await connect(port)
        writer.write((HEAD % (2**20, "")).encode() + b'{"audio": "AAAA')
        await asyncio.sleep(0.1)
        assert (runtime.admission.taken, runtime.admission.upload_bytes) == (1, 2**20)
        # A byte now and then does not extend the time.
        for _ in range(3):
            writer.write(b"A")
            await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            assert b" 408 " in await reader.readline()
        assert (runtime.admission.taken, runtime.admission.upload_bytes) == (0, 0)
        writer.close()


@pytest.mark.parametrize("reason", ["key", "full", "draining"])
async def test_a_large_body_is_refused_within_100_ms_and_not_read_for_ever(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Of a body declared as 48 MiB nothing needs to be sent, and what is sent later is discarded for a while."""
    monkeypatch.setattr(protocol, "_DISCARD_S", 0.5)
    async with serve(api_keys=["key"]) as (port, runtime):
        slots = (
            [runtime.admission.acquire(Caller(Api.REST)) for _ in range(runtime.manifest.slots)]
            if reason == "full"
            else []
        )
        if reason == "draining":
            runtime.sessions.begin_drain()
        took = []
        for _ in range(3):
            reader, writer = await connect(port)
            began = monotonic()
            header = "" if reason == "key" else "X-API-Key: key\r\n"
            writer.write((HEAD % (48 * 2**20, header)).encode())
            async with asyncio.timeout(5):
                status = await reader.readline()
            took.append(monotonic() - began)
            assert (b" 401 " if reason == "key" else b" 503 ") in status
            # It goes on sending, and is neither reset before it has read the answer nor read without end.
            writer.write(bytes(2**20))
            await reader.readuntil(b"\r\n\r\n")
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(send_on(writer), 3)
            writer.close()
        assert min(took) < 0.1
        for slot in slots:
            slot.release()
