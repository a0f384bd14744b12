"""Telephone calls on the fake engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.gateway.schemas import validator
from tests.gateway.telephony.phones import PHONES, Answer, Audio, Mark, Message, Phone
from tests.gateway.websocket.conftest import Server, noise, serve, server

__all__ = ["noise", "serve", "server"]

Serve = Callable[..., AbstractAsyncContextManager[Server]]


class Call:
    """A call on one connection. Everything that is received is checked and kept."""

    def __init__(self, phone: Phone, socket: ClientConnection) -> None:
        self.phone = phone
        self.socket = socket
        self._schema = validator(phone.service, "send")
        self.received: list[Audio | Mark | Answer] = []
        self.code: int | None = None
        self.reason = ""

    async def send(self, *messages: Message | None) -> None:
        for message in messages:
            if message is not None:
                await self.socket.send(message)

    async def begin(self, **parameters: str) -> None:
        await self.send(*self.phone.hello(**parameters))

    async def speak(self, data: bytes) -> None:
        """Send audio in frames of 20 ms, as services do."""
        for at in range(0, len(data), self.phone.frame_bytes):
            await self.send(self.phone.media(data[at : at + self.phone.frame_bytes]))

    async def receive(self) -> Audio | Mark | Answer:
        async with asyncio.timeout(20):
            message = await self.socket.recv()
        if isinstance(message, str) and message.startswith("{"):
            self._schema.validate(json.loads(message))
        self.received.append(self.phone.read(message))
        return self.received[-1]

    async def until_audio(self, seconds: float) -> bytes:
        """All audio so far, as soon as it is that long."""
        while len(self.audio) < seconds * 50 * self.phone.frame_bytes:
            await self.receive()
        return self.audio

    async def until_closed(self) -> None:
        try:
            while True:
                await self.receive()
        except ConnectionClosed as closed:
            self.code = self.socket.close_code
            self.reason = closed.rcvd.reason if closed.rcvd else ""

    async def hang_up(self) -> None:
        """End the call as the service does; return when the connection is closed."""
        if (stop := self.phone.stop()) is not None:
            await self.send(stop)
            await self.until_closed()
        else:
            closing = asyncio.create_task(self.socket.close())
            await self.until_closed()
            await closing

    @property
    def audio(self) -> bytes:
        return b"".join(one.data for one in self.received if isinstance(one, Audio))

    @property
    def marks(self) -> list[str]:
        return [one.name for one in self.received if isinstance(one, Mark)]


@asynccontextmanager
async def call(server: Server, phone: Phone, query: str = "", **options: Any) -> AsyncIterator[Call]:
    """A connection as the service opens it."""
    # It takes a second to make, in which no call should wait.
    validator(phone.service, "send")
    async with server.connect(phone.path + query, subprotocols=phone.subprotocols, **options) as socket:
        assert socket.subprotocol == (phone.subprotocols or [None])[0]
        yield Call(phone, socket)


@pytest.fixture(params=PHONES, ids=lambda kind: kind.__name__)
def phone(request: pytest.FixtureRequest) -> Phone:
    made: Phone = request.param()
    return made


@pytest.fixture(
    params=[PHONES[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in PHONES[1:])],
    ids=lambda kind: kind.__name__,
)
def any_phone(request: pytest.FixtureRequest) -> Phone:
    """For what does not depend on the service: one in the short form, all others in the long form."""
    made: Phone = request.param()
    return made
