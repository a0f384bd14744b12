"""A live caller on each face, against servers that do what a test tells them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from websockets.asyncio.server import ServerConnection, serve

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from loadtest.conversation import hold, record_of
from loadtest.pacing import Start
from loadtest.plan import Plan
from loadtest.question import FRAME_SIZE, RATE, Question
from loadtest.record import Face, Outcome, Record

SECONDS = 0.4
FRAMES = 5
AUDIO = bytes(2 * FRAME_SIZE)
RECORDING = Path(__file__).parents[1] / "data" / "question.wav"


Play = Callable[["Caller"], Awaitable[None]]


class Caller:
    """The server's end of a conversation, the same for both faces."""

    async def start(self) -> None: ...
    async def ready(self) -> None: ...
    async def frame(self) -> bool:
        """Wait for a user frame; whether there was one."""
        raise NotImplementedError

    async def audio(self, index: int, data: bytes = AUDIO) -> None: ...
    async def ended(self) -> None: ...
    async def refuse(self) -> None: ...
    async def cut_off(self) -> None: ...
    async def nonsense(self) -> None: ...
    async def gone(self) -> None:
        """Wait for the caller to hang up."""


class GrpcCaller(Caller):
    def __init__(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        self._requests = requests
        self._context = context

    async def _next(self) -> pb.ConverseRequest:
        return pb.ConverseRequest.FromString(await anext(self._requests))

    async def _say(self, **message: object) -> None:
        await self._context.write(pb.ConverseResponse(**message).SerializeToString())

    async def start(self) -> None:
        assert (await self._next()).WhichOneof("message") == "start"

    async def ready(self) -> None:
        await self._say(ready=pb.Ready(sample_rate=RATE, frame_size=FRAME_SIZE))

    async def frame(self) -> bool:
        request = await self._next()
        assert request.WhichOneof("message") == "end" or len(request.audio) == len(AUDIO)
        return request.WhichOneof("message") == "audio"

    async def audio(self, index: int, data: bytes = AUDIO) -> None:
        await self._say(audio=pb.Audio(index=index, data=data))

    async def ended(self) -> None:
        await self._say(ended=pb.Ended(reason=pb.END_REASON_COMPLETED, dropped_frames=1, late_frames=2))

    async def refuse(self) -> None:
        await self._context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    async def cut_off(self) -> None:
        await self._context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "more than 4.0 s were not read")

    async def nonsense(self) -> None:
        await self._context.write(b"\xff\xff")

    async def gone(self) -> None:
        await asyncio.Event().wait()


class WebSocketCaller(Caller):
    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    async def _say(self, **message: object) -> None:
        await self._connection.send(json.dumps(message))

    async def start(self) -> None:
        assert json.loads(await self._connection.recv())["type"] == "start"

    async def ready(self) -> None:
        audio = {"format": "pcm_s16le", "sample_rate": RATE}
        await self._say(type="ready", audio=audio, frame_size=FRAME_SIZE)

    async def frame(self) -> bool:
        message = await self._connection.recv()
        assert message == '{"type":"end"}' or len(message) == len(AUDIO)
        return isinstance(message, bytes)

    async def audio(self, index: int, data: bytes = AUDIO) -> None:
        await self._connection.send(data)

    async def ended(self) -> None:
        await self._say(type="ended", reason="completed", message="", dropped_frames=1, late_frames=2)
        await self._connection.close(1000)

    async def refuse(self) -> None:
        await self._say(type="error", code="at-capacity", message="full")
        await self._connection.close(1013, "full")

    async def cut_off(self) -> None:
        await self._say(type="error", code="slow-client", message="more than 4.0 s were not read")
        await self._connection.close(1008, "more than 4.0 s were not read")

    async def nonsense(self) -> None:
        await self._connection.send("{}")

    async def gone(self) -> None:
        await self._connection.wait_closed()


@asynccontextmanager
async def grpc_server(play: Play) -> AsyncIterator[str]:
    async def converse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        await play(GrpcCaller(requests, context))

    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(converse)
    handlers = grpc.method_handlers_generic_handler("personaplex.v1.PersonaPlex", {"Converse": method})
    server.add_generic_rpc_handlers([handlers])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def websocket_server(play: Play) -> AsyncIterator[str]:
    async with serve(lambda connection: play(WebSocketCaller(connection)), "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture(scope="module")
def question() -> Question:
    return Question.load(RECORDING)


@pytest.fixture(params=[Face.GRPC, Face.WEBSOCKET])
def face(request: pytest.FixtureRequest) -> Face:
    return request.param


@pytest.fixture
def call(face: Face, question: Question) -> Callable[..., Awaitable[Record]]:
    async def call(play: Play, drain: float = 5.0, setup: float = 5.0) -> Record:
        server = grpc_server if face is Face.GRPC else websocket_server
        async with server(play) as address:
            plan = Plan(f"http://{address}", address, str(RECORDING), "", 1, SECONDS, setup=setup, drain=drain)
            record = record_of(plan, 0, face)
            start = Start(1, 0.01, time.monotonic, lambda _: None)
            async with asyncio.timeout(20):
                await hold(record, plan, question, start, time.monotonic, lambda: None)
            return record

    return call


async def polite(caller: Caller) -> None:
    """As the protocol has it."""
    await caller.start()
    await caller.ready()
    await caller.audio(0)
    index = 0
    while await caller.frame():
        index += 1
        await caller.audio(index)
    await caller.ended()


async def test_a_whole_conversation(call: Callable[..., Awaitable[Record]], face: Face):
    record = await call(polite)
    assert (record.outcome, record.reason) == (Outcome.COMPLETED, "")
    assert (record.expected, record.frames, len(record.sent), len(record.came)) == (FRAMES,) * 4
    assert all(latency > 0 for latency in record.latencies)
    assert (record.dropped, record.late_at_server) == (1, 2)
    assert record.setup is not None
    assert record.first_audio is not None
    assert record.first_audio > record.setup


async def test_refused_at_the_door(call: Callable[..., Awaitable[Record]]):
    async def full(caller: Caller) -> None:
        await caller.start()
        await caller.refuse()

    record = await call(full)
    assert (record.outcome, record.reason) == (Outcome.REFUSED, "full")
    assert (record.expected, record.frames) == (FRAMES, 0)


async def test_cut_off_once_admitted_is_failed_not_refused(call: Callable[..., Awaitable[Record]], face: Face):
    async def slow_client(caller: Caller) -> None:
        await caller.start()
        await caller.ready()
        await caller.audio(0)
        await caller.frame()
        await caller.cut_off()

    record = await call(slow_client)
    assert record.outcome is Outcome.FAILED
    assert "not read" in record.reason
    assert record.setup is not None


async def test_a_server_that_goes_silent_leaves_frames_missing(call: Callable[..., Awaitable[Record]]):
    async def silent(caller: Caller) -> None:
        await caller.start()
        await caller.ready()
        await caller.audio(0)
        await caller.frame()
        await caller.audio(1)
        while await caller.frame():
            pass
        await caller.gone()

    record = await call(silent, drain=0.2)
    assert record.outcome is Outcome.FAILED
    assert record.reason.startswith("not over")
    assert (record.frames, len(record.sent)) == (1, FRAMES)


async def test_a_server_that_is_never_ready(call: Callable[..., Awaitable[Record]]):
    async def slow(caller: Caller) -> None:
        await caller.start()
        await caller.gone()

    record = await call(slow, setup=0.2)
    assert (record.outcome, record.reason) == (Outcome.FAILED, "not ready in time")


@pytest.mark.parametrize("fault", ["nonsense", "short", "early", "before_ready", "twice_ready"])
async def test_what_the_protocol_does_not_have_fails_the_conversation(
    call: Callable[..., Awaitable[Record]], fault: str
):
    async def wrong(caller: Caller) -> None:
        await caller.start()
        if fault == "before_ready":
            await caller.audio(0)
        await caller.ready()
        if fault == "twice_ready":
            await caller.ready()
        await caller.audio(0, AUDIO[2:] if fault == "short" else AUDIO)
        if fault == "early":
            # Faster than the caller speaks: nobody asked for it yet.
            for index in range(1, FRAMES + 1):
                await caller.audio(index)
        if fault == "nonsense":
            await caller.nonsense()
        while await caller.frame():
            pass

    record = await call(wrong)
    assert record.outcome is Outcome.FAILED
    assert record.reason.startswith("Malformed"), record.reason


async def test_a_lost_connection_fails_the_conversation(call: Callable[..., Awaitable[Record]], face: Face):
    async def gone(caller: Caller) -> None:
        await caller.start()
        await caller.ready()
        await caller.audio(0)
        await caller.frame()

    record = await call(gone)
    assert record.outcome is Outcome.FAILED
    assert record.frames == 0
