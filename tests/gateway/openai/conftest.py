"""Clients of the OpenAI APIs on the fake engine. All events that they receive are checked with openai-python and
the published schemas.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.gateway.openai.types import Order, check, check_realtime
from tests.gateway.schemas import validator
from tests.gateway.websocket.conftest import FRAME, Server, noise, serve, server

__all__ = ["noise", "serve", "server"]

PATH = "/v1/live/sessions"
REALTIME_PATH = "/v1/realtime"
DELTA = "session.output_audio.delta"
TEXT = "session.output_transcript.delta"


class Connection:
    """One connection: sends events, and keeps and checks all that it receives."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self.code: int | None = None

    def check(self, event: dict[str, Any]) -> None:
        """Assert that an event is one of the API."""
        check(event)
        validator("live", "send").validate(event)

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            event: dict[str, Any] = json.loads(await self.socket.recv())
        self.check(event)
        self.events.append(event)
        return event

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of that type."""
        while (event := await self.receive())["type"] != kind:
            pass
        return event

    async def until_closed(self) -> list[dict[str, Any]]:
        """All events that come until the close, whose code is `code` afterwards."""
        before = len(self.events)
        try:
            while True:
                await self.receive()
        except ConnectionClosed:
            self.code = self.socket.close_code
        return self.events[before:]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def joined(self, kind: str) -> bytes:
        """The audio of all events of that type so far."""
        return b"".join(base64.b64decode(event["delta"]) for event in self.of(kind))


def encoded(pcm: NDArray[np.float32] | bytes) -> str:
    """Samples as PCM of 16 bits, or bytes, in base64."""
    data = pcm if isinstance(pcm, bytes) else (pcm * 32767).astype("<i2").tobytes()
    return base64.b64encode(data).decode()


class Caller(Connection):
    """A client of the Live API."""

    async def append(self, pcm: NDArray[np.float32] | bytes) -> None:
        await self.send("session.input_audio.append", audio=encoded(pcm))

    async def start(self, event_id: str = "start-1", **session: Any) -> dict[str, Any]:
        """Start a session; return the configuration as resolved."""
        await self.send("session.start", event_id=event_id, session={"model": "gpt-live-1", **session})
        started = await self.until("session.started")
        assert started["client_event_id"] == event_id
        resolved: dict[str, Any] = started["session"]
        return resolved

    async def close(self) -> list[dict[str, Any]]:
        """Close the session; return all events that come before the socket closes."""
        await self.send("session.close", event_id="close-1")
        return await self.until_closed()

    @property
    def audio(self) -> bytes:
        """All audio so far."""
        return self.joined(DELTA)

    @property
    def frames(self) -> NDArray[np.int16]:
        """All audio so far: [frames, 1920], for PCM at 24 kHz."""
        return np.frombuffer(self.audio, "<i2").reshape(-1, FRAME)

    @property
    def transcript(self) -> str:
        return "".join(event["delta"] for event in self.of(TEXT))


class RealtimeCaller(Connection):
    """A client of the Realtime API."""

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__(socket)
        self._order = Order()

    def check(self, event: dict[str, Any]) -> None:
        check_realtime(event)
        validator("realtime", "send").validate(event)
        self._order.add(event)

    async def append(self, pcm: NDArray[np.float32] | bytes) -> None:
        await self.send("input_audio_buffer.append", audio=encoded(pcm))

    async def update(self, **session: Any) -> dict[str, Any]:
        """Update the session; return the configuration as resolved."""
        await self.send("session.update", session={"type": "realtime", **session})
        resolved: dict[str, Any] = (await self.until("session.updated"))["session"]
        return resolved

    async def error(self) -> dict[str, Any]:
        """The next error."""
        details: dict[str, Any] = (await self.until("error"))["error"]
        return details


@asynccontextmanager
async def realtime(server: Server, path: str = REALTIME_PATH, **options: Any) -> AsyncIterator[RealtimeCaller]:
    """A connection to the Realtime API."""
    async with server.connect(path, **options) as socket:
        yield RealtimeCaller(socket)


@asynccontextmanager
async def call(server: Server, **options: Any) -> AsyncIterator[Caller]:
    """A connection to the server."""
    async with server.connect(PATH, **options) as socket:
        yield Caller(socket)


async def refusal(server: Server, path: str = REALTIME_PATH, **options: Any) -> tuple[int, str]:
    """Status and code of the error of an opening handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with server.connect(path, **options):
            pass
    response = caught.value.response
    assert response.body is not None
    return response.status_code, json.loads(response.body)["error"]["code"]


@pytest.fixture
async def caller(server: Server) -> AsyncIterator[Caller]:
    async with call(server) as caller:
        yield caller


Serve = Callable[..., AbstractAsyncContextManager[Server]]
