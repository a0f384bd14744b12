"""Clients that disconnect at any time: the work is cancelled and the slot is freed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI

from gateway.api.disconnect import ABORT, ClientGone, while_connected
from gateway.engine.fake import FakeBackend
from gateway.errors import EngineUnavailable
from gateway.settings import Settings
from tests.series import total

Make = Callable[..., bytes]


class Client:
    """A raw ASGI client of POST /v1/respond that can disconnect and can stop reading."""

    def __init__(self, body: dict[str, Any], accept: str = "audio/wav") -> None:
        headers = [(b"content-type", b"application/json"), (b"accept", accept.encode())]
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/respond",
            "raw_path": b"/v1/respond",
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("client", 1),
            "server": ("gateway", 80),
        }
        self._body: list[bytes] = [json.dumps(body).encode()]
        self._gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.sent: list[dict[str, Any]] = []
        self._broken_off = False

    def disconnect_after(self, half: bytes) -> None:
        """Disconnect when this much of the body has been sent."""
        self._body = [half]
        self._broken_off = True
        self._gone.set()

    def disconnect(self) -> None:
        self._gone.set()

    async def receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": self._broken_off}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        self.sent.append(message)

    async def call(self, app: FastAPI) -> None:
        await app(self.scope, self.receive, self.send)


@pytest.fixture
def body(recording: Make) -> dict[str, Any]:
    return {"audio": base64.b64encode(recording()).decode(), "max_steps": 300}


def free(app: FastAPI, engine: FakeBackend) -> bool:
    return app.state.runtime.admission.taken == 0 and engine.opened == engine.closed


def ended(app: FastAPI, reason: str) -> float:
    return total(app.state.runtime.metrics, "personaplex_ended_total", reason=reason)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seconds", [0.005, 0.05, 0.2])
async def test_a_disconnect_frees_the_slot(
    app: FastAPI, engine: FakeBackend, body: dict[str, Any], stream: bool, seconds: float
):
    engine.delay = 0.01
    client = Client({**body, "stream": stream})
    task = asyncio.create_task(client.call(app))
    await asyncio.sleep(seconds)
    client.disconnect()
    await asyncio.wait_for(task, 1)
    assert free(app, engine)
    assert ended(app, "completed") == 0


async def test_a_disconnect_of_a_client_that_stopped_reading_frees_the_slot(
    app: FastAPI, engine: FakeBackend, body: dict[str, Any]
):
    client = Client({**body, "stream": True})
    client.reads.clear()
    task = asyncio.create_task(client.call(app))
    await asyncio.sleep(0.05)
    assert app.state.runtime.admission.taken == 1
    client.disconnect()
    await asyncio.wait_for(task, 1)
    assert free(app, engine)
    assert ended(app, "disconnected") == 1


async def test_a_client_that_does_not_read_is_disconnected(
    app: FastAPI, engine: FakeBackend, settings: Settings, body: dict[str, Any]
):
    settings.idle_seconds = 0.2
    client = Client({**body, "stream": True})
    cut = asyncio.Event()
    client.scope["extensions"] = {ABORT: cut.set}
    client.reads.clear()
    await asyncio.wait_for(client.call(app), 2)
    assert cut.is_set()
    assert free(app, engine)
    assert ended(app, "disconnected") == 1


async def test_a_slow_reader_gets_the_complete_response(
    app: FastAPI, engine: FakeBackend, settings: Settings, body: dict[str, Any]
):
    settings.idle_seconds = 0.4
    client = Client({**body, "stream": True, "max_steps": 10})

    async def slowly(message: dict[str, Any]) -> None:
        await asyncio.sleep(0.1)
        client.sent.append(message)

    await asyncio.wait_for(app(client.scope, client.receive, slowly), 5)
    assert sum(len(message.get("body", b"")) for message in client.sent) == 44 + 10 * 3840
    assert not client.sent[-1]["more_body"]
    assert free(app, engine)


async def test_a_drain_does_not_wait_for_a_client_that_does_not_read(
    app: FastAPI, engine: FakeBackend, settings: Settings, body: dict[str, Any]
):
    settings.drain_seconds = 0.1
    client = Client({**body, "stream": True})
    client.reads.clear()
    task = asyncio.create_task(client.call(app))
    await asyncio.sleep(0.05)
    assert app.state.runtime.admission.taken == 1
    await app.state.runtime.sessions.drain()
    assert free(app, engine)
    await asyncio.wait_for(task, 1)


@pytest.mark.parametrize(
    ("kind", "half"),
    [
        (b"application/json", b'{"audio": "'),
        (b"multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="text_prompt"\r\n\r\nYou'),
    ],
)
async def test_a_disconnect_during_the_upload_is_not_logged_as_an_error(app: FastAPI, kind: bytes, half: bytes):
    client = Client({})
    client.scope["headers"] = [(b"content-type", kind)]
    client.disconnect_after(half)
    await asyncio.wait_for(client.call(app), 1)
    assert client.sent[0]["status"] == 499


async def test_a_stream_sends_its_first_frame_long_before_its_last(
    app: FastAPI, engine: FakeBackend, body: dict[str, Any]
):
    engine.delay = 0.005
    client = Client({**body, "stream": True})
    task = asyncio.create_task(client.call(app))
    await asyncio.sleep(0.15)
    start, first, *more = client.sent
    assert (start["status"], len(first["body"])) == (200, 44 + 3840)
    assert 0 < len(more) < 20
    assert {len(message["body"]) for message in more} == {3840}
    client.disconnect()
    await task


async def test_a_failed_stream_is_recognizably_incomplete(
    app: FastAPI, engine: FakeBackend, body: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    engine.delay = 0.005
    client = Client({**body, "stream": True})
    task = asyncio.create_task(client.call(app))
    await asyncio.sleep(0.1)
    engine.down = True
    await asyncio.wait_for(task, 1)
    assert client.sent[-1]["more_body"]
    assert "a streamed response failed: the fake backend is down" in caplog.text
    assert ended(app, "engine") == 1
    assert free(app, engine)


async def test_cancelling_the_server_task_frees_the_slot(app: FastAPI, engine: FakeBackend, body: dict[str, Any]):
    engine.delay = 0.01
    for stream in (False, True):
        task = asyncio.create_task(Client({**body, "stream": stream}).call(app))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
        assert free(app, engine)


async def test_a_thousand_disconnects_leak_nothing(app: FastAPI, engine: FakeBackend, body: dict[str, Any]):
    engine.delay = 0.0002
    for index in range(250):
        clients = [Client({**body, "stream": index % 2 == 0}) for _ in range(4)]
        tasks = [asyncio.create_task(client.call(app)) for client in clients]
        await asyncio.sleep(0.0001 * (index % 40))
        for client in clients:
            client.disconnect()
        await asyncio.gather(*tasks)
    assert free(app, engine)


async def test_while_connected_returns_the_result_or_raises_the_error():
    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def result() -> int:
        return 5

    async def error() -> int:
        raise EngineUnavailable("gone")

    assert await while_connected(never, result()) == 5
    with pytest.raises(EngineUnavailable):
        await while_connected(never, error())


async def test_the_work_has_ended_when_client_gone_is_raised():
    over = asyncio.Event()

    async def disconnect() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            over.set()

    with pytest.raises(ClientGone):
        await while_connected(disconnect, work())
    assert over.is_set()
