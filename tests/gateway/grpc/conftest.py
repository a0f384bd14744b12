"""The gRPC API on a fake backend at a loopback port, and a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from gateway.api.grpc.server import GrpcServer
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.session.runtime import Runtime
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics

FRAME = 1920


@pytest.fixture
def settings(models: Path) -> Settings:
    """No pacing, so that tests do not take the time of the audio."""
    return Settings(models=models, live_speed=0, retry_after=7, max_steps=400)


@pytest.fixture
def runtime(settings: Settings, manifest: Manifest, engine: FakeBackend) -> Runtime:
    return Runtime(settings, manifest, engine, Metrics(manifest.slots))


@pytest.fixture
async def server(runtime: Runtime) -> AsyncIterator[GrpcServer]:
    """A running server; at its end every slot is free again and every session closed."""
    server = GrpcServer(runtime)
    await server.start("127.0.0.1", 0)
    yield server
    await server.stop()
    await runtime.close()
    assert runtime.admission.taken == 0
    assert runtime.backend.opened == runtime.backend.closed


@pytest.fixture
async def channel(server: GrpcServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> personaplex_pb2_grpc.PersonaPlexStub:
    return personaplex_pb2_grpc.PersonaPlexStub(channel)


@dataclass
class Conversation:
    """All that came back from a Converse call, in order, and its status."""

    messages: list[pb.ConverseResponse] = field(default_factory=list)
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    details: str = ""
    trailing: dict[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        return [message.WhichOneof("message") for message in self.messages]

    @property
    def ready(self) -> pb.Ready:
        (ready,) = self._all("ready")
        return ready

    @property
    def ended(self) -> pb.Ended:
        (ended,) = self._all("ended")
        return ended

    @property
    def audio(self) -> list[pb.Audio]:
        return self._all("audio")

    @property
    def tokens(self) -> NDArray[np.int64]:
        """[frames, 9]: text, then the agent's codes."""
        return np.array([[frame.text_token, *frame.agent_codes] for frame in self.audio])

    def pcm(self, dtype: str = "<i2") -> NDArray[Any]:
        return np.frombuffer(b"".join(frame.data for frame in self.audio), dtype)

    def _all(self, kind: str) -> list[Any]:
        return [getattr(message, kind) for message in self.messages if message.WhichOneof("message") == kind]


async def receive_all(call: grpc.aio.StreamStreamCall) -> Conversation:
    """Reads a call to its end."""
    conversation = Conversation()
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            conversation.messages.append(message)
    except grpc.aio.AioRpcError:
        pass
    conversation.code, conversation.details = await call.code(), await call.details()
    conversation.trailing = dict(await call.trailing_metadata())
    return conversation


Talk = Callable[..., Awaitable[Conversation]]


@pytest.fixture
def talk(stub: personaplex_pb2_grpc.PersonaPlexStub) -> Talk:
    """Sends messages as fast as they are taken, then closes the sending side if `done`, and reads to the end."""

    async def send(messages: Iterable[pb.ConverseRequest], *, done: bool = True, **options: Any) -> Conversation:
        call = stub.Converse(**options)

        async def send() -> None:
            # A call that has ended takes no more.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                for message in messages:
                    await call.write(message)
                if done:
                    await call.done_writing()

        sending = asyncio.create_task(send())
        received = await receive_all(call)
        await sending
        return received

    return send


def start(**fields: Any) -> pb.ConverseRequest:
    return pb.ConverseRequest(start=pb.Start(**fields))


def audio(data: bytes) -> pb.ConverseRequest:
    return pb.ConverseRequest(audio=data)


END = pb.ConverseRequest(end=pb.End())


def noise(frames: float, rate: int = 24_000) -> NDArray[np.float32]:
    return np.random.default_rng(5).uniform(-0.3, 0.3, round(frames * 0.08 * rate)).astype(np.float32)


def pieces(data: bytes, size: int) -> list[pb.ConverseRequest]:
    """As messages of `size` bytes."""
    return [audio(data[at : at + size]) for at in range(0, len(data), size)]
