"""A live user of each API, against servers that follow a test's script."""

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
from websockets.http11 import Response

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from loadtest.conversation import Conversation
from loadtest.pacing import Start
from loadtest.plan import Plan
from loadtest.record import Api, Outcome, Record
from loadtest.speech import FRAME_SIZE, RATE, Speech

SECONDS = 0.4
FRAMES = 5
AUDIO = bytes(2 * FRAME_SIZE)
RECORDING = Path(__file__).parents[1] / "data" / "question.wav"


Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's side of a conversation, the same for both APIs."""

    async def start(self) -> None: ...
    async def ready(self) -> None: ...
    async def frame(self) -> bool:
        """Wait for a message; whether it is a user frame."""
        raise NotImplementedError

    async def audio(self, index: int, data: bytes = AUDIO) -> None: ...
    async def ended(self) -> None: ...
    async def refuse(self) -> None: ...
    async def disconnect(self) -> None: ...
    async def send_garbage(self) -> None: ...
    async def wait_closed(self) -> None:
        """Wait for the user to disconnect."""


class GrpcPeer(Peer):
    def __init__(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        self._requests = requests
        self._context = context

    async def _next(self) -> pb.ConverseRequest:
        return pb.ConverseRequest.FromString(await anext(self._requests))

    async def _send(self, **message: object) -> None:
        await self._context.write(pb.ConverseResponse(**message).SerializeToString())

    async def start(self) -> None:
        assert (await self._next()).WhichOneof("message") == "start"

    async def ready(self) -> None:
        await self._send(ready=pb.Ready(sample_rate=RATE, frame_size=FRAME_SIZE))

    async def frame(self) -> bool:
        request = await self._next()
        assert request.WhichOneof("message") == "end" or len(request.audio) == len(AUDIO)
        return request.WhichOneof("message") == "audio"

    async def audio(self, index: int, data: bytes = AUDIO) -> None:
        await self._send(audio=pb.Audio(index=index, data=data))

    async def ended(self) -> None:
        await self._send(ended=pb.Ended(reason=pb.END_REASON_COMPLETED, dropped_frames=1, late_frames=2))

    async def refuse(self) -> None:
        await self._context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    async def disconnect(self) -> None:
        await self._context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "more than 4.0 s were not read")

    async def send_garbage(self) -> None:
        await self._context.write(b"\xff\xff")

    async def wait_closed(self) -> None:
        await asyncio.Event().wait()


class WebSocketPeer(Peer):
    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    async def _send(self, **message: object) -> None:
        await self._connection.send(json.dumps(message))

    async def start(self) -> None:
        assert json.loads(await self._connection.recv())["type"] == "start"

    async def ready(self) -> None:
        audio = {"format": "pcm_s16le", "sample_rate": RATE}
        await self._send(type="ready", audio=audio, frame_size=FRAME_SIZE)

    async def frame(self) -> bool:
        message = await self._connection.recv()
        assert message == '{"type":"end"}' or len(message) == len(AUDIO)
        return isinstance(message, bytes)

    async def audio(self, index: int, data: bytes = AUDIO) -> None:
        await self._connection.send(data)

    async def ended(self) -> None:
        await self._send(type="ended", reason="completed", message="", dropped_frames=1, late_frames=2)
        await self._connection.close(1000)

    async def refuse(self) -> None:
        await self._send(type="error", code="at-capacity", message="full")
        await self._connection.close(1013, "full")

    async def disconnect(self) -> None:
        await self._send(type="error", code="slow-client", message="more than 4.0 s were not read")
        await self._connection.close(1008, "more than 4.0 s were not read")

    async def send_garbage(self) -> None:
        await self._connection.send("{}")

    async def wait_closed(self) -> None:
        await self._connection.wait_closed()


@asynccontextmanager
async def grpc_server(script: Script) -> AsyncIterator[str]:
    async def converse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        await script(GrpcPeer(requests, context))

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
async def websocket_server(script: Script) -> AsyncIterator[str]:
    async with serve(lambda connection: script(WebSocketPeer(connection)), "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture(scope="module")
def speech() -> Speech:
    return Speech.load(RECORDING)


@pytest.fixture(params=[Api.GRPC, Api.WEBSOCKET])
def api(request: pytest.FixtureRequest) -> Api:
    return request.param


def new_call(api: Api, plan: Plan, speech: Speech, seconds: float) -> Conversation:
    start = Start("admitted", 0.0, time.monotonic, lambda: None)
    return Conversation(api, 0, seconds, plan, speech, start, time.monotonic)


@pytest.fixture
def call(api: Api, speech: Speech) -> Callable[..., Awaitable[Record]]:
    async def call(
        script: Script,
        drain: float = 5.0,
        setup: float = 5.0,
        seconds: float = SECONDS,
        stop_after: float | None = None,
    ) -> Record:
        server = grpc_server if api is Api.GRPC else websocket_server
        async with server(script) as address:
            plan = Plan(f"http://{address}", address, str(RECORDING), setup=setup, drain=drain)
            conversation = new_call(api, plan, speech, seconds)
            async with asyncio.timeout(20):
                running = asyncio.create_task(conversation.run(lambda: None))
                if stop_after is not None:
                    await asyncio.sleep(stop_after)
                    conversation.stop()
                await running
            return conversation.record

    return call


async def regular(peer: Peer) -> None:
    """Follow the protocol."""
    await peer.start()
    await peer.ready()
    await peer.audio(0)
    index = 0
    while await peer.frame():
        index += 1
        await peer.audio(index)
    await peer.ended()


async def test_a_whole_conversation(call: Callable[..., Awaitable[Record]], api: Api):
    record = await call(regular)
    assert (record.outcome, record.reason) == (Outcome.COMPLETED, "")
    assert (record.expected, record.frames, len(record.sent), len(record.received)) == (FRAMES,) * 4
    assert all(latency > 0 for latency in record.latencies)
    assert (record.dropped, record.late_at_server) == (1, 2)
    assert record.setup is not None
    assert record.first_audio is not None
    assert record.first_audio > record.setup


async def test_a_server_without_a_free_slot_refuses(call: Callable[..., Awaitable[Record]]):
    async def full(peer: Peer) -> None:
        await peer.start()
        await peer.refuse()

    record = await call(full)
    assert (record.outcome, record.reason) == (Outcome.REFUSED, "full")
    assert (record.expected, record.frames) == (FRAMES, 0)


async def test_a_refused_upgrade_is_a_refusal_if_it_may_be_tried_again(speech: Speech):
    for status, outcome in ((503, Outcome.REFUSED), (403, Outcome.FAILED)):

        def refuse(connection: ServerConnection, request: object, status: int = status) -> Response:
            return connection.respond(status, "")

        async with serve(_never, "127.0.0.1", 0, process_request=refuse) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            plan = Plan(f"http://{address}", address, str(RECORDING), setup=5.0, drain=5.0)
            conversation = new_call(Api.WEBSOCKET, plan, speech, SECONDS)
            async with asyncio.timeout(20):
                await conversation.run(lambda: None)
            assert conversation.record.outcome == outcome


async def _never(_: ServerConnection) -> None:
    raise AssertionError("the upgrade was refused")


async def test_a_conversation_ended_after_admission_is_failed_not_refused(
    call: Callable[..., Awaitable[Record]], api: Api
):
    async def slow_client(peer: Peer) -> None:
        await peer.start()
        await peer.ready()
        await peer.audio(0)
        await peer.frame()
        await peer.disconnect()

    record = await call(slow_client)
    assert record.outcome is Outcome.FAILED
    assert "not read" in record.reason
    assert record.setup is not None


async def test_a_server_that_goes_silent_leaves_frames_missing(call: Callable[..., Awaitable[Record]]):
    async def silent(peer: Peer) -> None:
        await peer.start()
        await peer.ready()
        await peer.audio(0)
        await peer.frame()
        await peer.audio(1)
        while await peer.frame():
            pass
        await peer.wait_closed()

    record = await call(silent, drain=0.2)
    assert record.outcome is Outcome.FAILED
    assert record.reason.startswith("not over")
    assert (record.frames, len(record.sent)) == (1, FRAMES)


async def test_a_server_that_is_never_ready(call: Callable[..., Awaitable[Record]]):
    async def slow(peer: Peer) -> None:
        await peer.start()
        await peer.wait_closed()

    record = await call(slow, setup=0.2)
    assert (record.outcome, record.reason) == (Outcome.FAILED, "not ready in time")


@pytest.mark.parametrize("fault", ["garbage", "short", "early", "before_ready", "twice_ready"])
async def test_a_protocol_violation_fails_the_conversation(call: Callable[..., Awaitable[Record]], fault: str):
    async def wrong(peer: Peer) -> None:
        await peer.start()
        if fault == "before_ready":
            await peer.audio(0)
        await peer.ready()
        if fault == "twice_ready":
            await peer.ready()
        await peer.audio(0, AUDIO[2:] if fault == "short" else AUDIO)
        if fault == "early":
            # Faster than the user sends: the frames answer none of its frames.
            for index in range(1, FRAMES + 1):
                await peer.audio(index)
        if fault == "garbage":
            await peer.send_garbage()
        while await peer.frame():
            pass

    record = await call(wrong)
    assert record.outcome is Outcome.FAILED
    assert record.reason.startswith("Malformed"), record.reason


async def test_a_lost_connection_fails_the_conversation(call: Callable[..., Awaitable[Record]], api: Api):
    async def closed(peer: Peer) -> None:
        await peer.start()
        await peer.ready()
        await peer.audio(0)
        await peer.frame()

    record = await call(closed)
    assert record.outcome is Outcome.FAILED
    assert record.frames == 0


async def test_a_stopped_call_ends_regularly_and_expects_the_frames_until_then(call: Callable[..., Awaitable[Record]]):
    record = await call(regular, seconds=60.0, stop_after=0.5)
    assert (record.outcome, record.reason) == (Outcome.COMPLETED, "")
    assert 1 <= record.expected <= 7
    assert record.frames == record.expected == len(record.sent)


async def test_a_call_stopped_before_it_is_admitted_expects_nothing(call: Callable[..., Awaitable[Record]]):
    async def slow(peer: Peer) -> None:
        await peer.start()
        await peer.wait_closed()

    record = await call(slow, stop_after=0.2)
    assert (record.outcome, record.expected) == (Outcome.STOPPED, 0)


async def test_a_refused_call_expects_frames_until_the_run_is_stopped(call: Callable[..., Awaitable[Record]]):
    async def full(peer: Peer) -> None:
        await peer.start()
        await peer.refuse()

    record = await call(full, seconds=60.0, stop_after=0.5)
    assert record.outcome is Outcome.REFUSED
    assert 6 <= record.expected <= 20
