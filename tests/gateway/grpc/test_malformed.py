"""Invalid messages: every RPC ends soon, with a status that states the fault, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.server import SERVICE, GrpcServer
from gateway.audio.opus import OpusEncoder
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.session.runtime import Runtime
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.effort import effort
from tests.gateway.grpc.conftest import END, audio, receive_all, start

Code = grpc.StatusCode
NAN = struct.pack("<f", float("nan")) * 1920


@pytest.mark.parametrize(
    ("first", "field"),
    [
        (pb.ConverseRequest(), "start"),
        (audio(bytes(3840)), "start"),
        (END, "start"),
        (None, "start"),
        (start(voice="nobody"), "voice"),
        (start(voice="a" * 201), "voice"),
        (start(system_prompt="nothing"), "system_prompt"),
        (start(text_prompt="a" * 20_001), "text_prompt"),
        (start(text_prompt=" word" * 4000), "text_prompt"),
        (start(format=9), "format"),
        (start(on_gap=9), "on_gap"),
        (start(sample_rate=7_999), "sample_rate"),
        (start(sample_rate=192_001), "sample_rate"),
        (start(sample_rate=0), "sample_rate"),
        (start(format=pb.AUDIO_FORMAT_OPUS, sample_rate=48_000), "sample_rate"),
        (start(sampling=pb.Sampling(audio_temperature=float("inf"))), "audio_temperature"),
        (start(sampling=pb.Sampling(seed=-1)), "seed"),
    ],
)
async def test_an_invalid_start_is_rejected_before_a_slot_is_taken(talk, runtime, engine, first, field):
    received = await talk([] if first is None else [first], done=first is None)
    assert (received.code, received.kinds) == (Code.INVALID_ARGUMENT, [])
    assert received.trailing["personaplex-field"] == field
    assert engine.opened == 0


@pytest.mark.parametrize(
    ("fields", "then", "problem"),
    [
        ({}, audio(b"odd"), "unusable-audio"),
        ({"format": pb.AUDIO_FORMAT_PCM_F32LE}, audio(bytes(3842)), "unusable-audio"),
        ({"format": pb.AUDIO_FORMAT_PCM_F32LE}, audio(NAN), "unusable-audio"),
        ({"format": pb.AUDIO_FORMAT_PCM_F32LE}, audio(struct.pack("<f", -float("inf"))), "unusable-audio"),
        ({"format": pb.AUDIO_FORMAT_PCM_F32LE}, audio(struct.pack("<f", 1e9)), "unusable-audio"),
        ({"format": pb.AUDIO_FORMAT_OPUS}, audio(b""), "unusable-audio"),
        ({"format": pb.AUDIO_FORMAT_OPUS}, audio(b"\xff" * 40), "unusable-audio"),
        ({}, start(), "invalid-request"),
        ({}, pb.ConverseRequest(), "invalid-request"),
        ({}, audio(bytes(2**20 + 2)), "payload-too-large"),
    ],
)
async def test_invalid_audio_ends_the_session(talk, fields, then, problem):
    received = await talk([start(**fields), then], done=False)
    assert received.code is Code.INVALID_ARGUMENT
    assert received.ended.reason == pb.END_REASON_CLIENT_ERROR
    assert received.ended.message == received.details
    assert received.trailing["personaplex-problem"] == problem


async def test_bytes_that_cannot_be_parsed_are_rejected(channel, runtime):
    raw = channel.stream_stream(f"/{SERVICE}/Converse", response_deserializer=pb.ConverseResponse.FromString)
    first = raw()
    await first.write(b"\xff\xff\xff")
    assert (await receive_all(first)).code is Code.INVALID_ARGUMENT
    later = raw()
    await later.write(start().SerializeToString())
    await later.write(b"\xff\xff\xff")
    assert (await receive_all(later)).code is Code.INVALID_ARGUMENT
    unary = channel.unary_unary(f"/{SERVICE}/Respond")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await unary(b"\xff\xff\xff")
    assert refused.value.code() is Code.INVALID_ARGUMENT
    assert refused.value.details() == "expected a personaplex.v1.RespondRequest, got bytes that are none"


async def test_a_message_beyond_the_limit_is_not_read(server, runtime):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/{SERVICE}/Respond")(bytes(66 * 2**20))
    assert refused.value.code() is Code.RESOURCE_EXHAUSTED
    assert runtime.admission.taken == 0


async def test_an_unknown_method_is_rejected(channel):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary(f"/{SERVICE}/Sing")(b"")
    assert refused.value.code() is Code.UNIMPLEMENTED


LIMIT = 2**16
OPUS = OpusEncoder().encode(np.zeros(1920, np.float32))
WHOLE = st.integers(0, 3000).map(lambda samples: bytes(4 * samples))
SAMPLING = st.builds(
    pb.Sampling,
    audio_temperature=st.none() | st.floats(),
    text_temperature=st.none() | st.floats(-1, 3),
    audio_top_k=st.none() | st.integers(-(2**63), 2**63 - 1),
    greedy=st.none() | st.booleans(),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
)
GOOD_START = st.builds(
    start,
    format=st.sampled_from(pb.AudioFormat.values()),
    on_gap=st.sampled_from(pb.OnGap.values()),
    include_tokens=st.booleans(),
)
ANY_START = st.builds(
    start,
    voice=st.none() | st.sampled_from(["NATF0", ""]) | st.text(max_size=300),
    text_prompt=st.none() | st.text(max_size=50),
    sampling=st.none() | SAMPLING,
    on_gap=st.integers(-(2**31), 2**31 - 1) | st.sampled_from(pb.OnGap.values()),
    format=st.integers(-(2**31), 2**31 - 1) | st.sampled_from(pb.AudioFormat.values()),
    sample_rate=st.none() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([8_000, 24_000, 48_000]),
)
AUDIO = st.one_of(WHOLE, st.binary(max_size=200), st.just(NAN), st.just(OPUS), st.just(bytes(LIMIT + 4))).map(audio)
MESSAGE = st.one_of(AUDIO, AUDIO, AUDIO, GOOD_START, st.just(END), st.just(pb.ConverseRequest()))
UNKNOWN_FIELD = st.binary(min_size=1, max_size=20).map(lambda data: b"\x9a\x06" + bytes([len(data)]) + data)
RAW = st.one_of(
    MESSAGE.map(pb.ConverseRequest.SerializeToString),
    st.tuples(MESSAGE.map(pb.ConverseRequest.SerializeToString), UNKNOWN_FIELD).map(b"".join),
    st.binary(max_size=60),
)
BEGINNING = st.one_of(GOOD_START, GOOD_START, GOOD_START, ANY_START).map(pb.ConverseRequest.SerializeToString)
SEQUENCE = st.one_of(
    st.tuples(BEGINNING, st.lists(RAW, max_size=8)).map(lambda parts: [parts[0], *parts[1]]),
    st.lists(RAW, max_size=4),
)
GOODBYE = st.sampled_from(["done", "done", "done", "cancel"])
ENDS = {Code.OK, Code.INVALID_ARGUMENT, Code.DEADLINE_EXCEEDED}

# What grpc.aio's client makes of a write to a call whose status is on its way, the status being lost; and it keeps such
# a call open, unread, until its channel is closed, and a task of its own even longer.
CLIENTS_OWN_ERROR = "Internal error from Core"


class WebSocketSession:
    """One server and one client for all cases, in a separate event loop."""

    def __init__(self, models: Path) -> None:
        self.runner = asyncio.Runner()
        manifest = Manifest.load(models)
        limits = {"live_speed": 0, "handshake_seconds": 2, "idle_seconds": 2, "max_message_bytes": LIMIT}
        self.engine = FakeBackend(manifest)
        self.runtime = Runtime(Settings(models=models, **limits), manifest, self.engine, Metrics(manifest.slots))
        self.server = GrpcServer(self.runtime)
        self.runner.run(self._open())

    async def _open(self) -> None:
        await self.server.start("127.0.0.1", 0)
        await self._connect()
        self.tasks = self.at_work()

    async def _connect(self) -> None:
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.converse = self.channel.stream_stream(
            f"/{SERVICE}/Converse", response_deserializer=pb.ConverseResponse.FromString
        )
        await self.channel.channel_ready()

    def at_work(self) -> int:
        """Tasks of the server; calls are the client's, and the scheduler's lanes start with the first session."""
        names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
        return sum(not name.startswith(("_AioCall.", "FrameScheduler.run")) for name in names)

    async def close(self) -> None:
        await self.channel.close()
        await self.server.stop()
        await self.runtime.close()

    async def case(self, messages: list[bytes], goodbye: str) -> None:
        call = self.converse()

        async def send() -> None:
            # A call that has been refused takes no more.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
                for message in messages:
                    await call.write(message)
                if goodbye == "done":
                    await call.done_writing()

        sending = asyncio.create_task(send())
        if goodbye == "cancel":
            await sending
            call.cancel()
            received = None
        else:
            received = await receive_all(call)
            await sending
        if await call.details() == CLIENTS_OWN_ERROR:
            await self.channel.close()
            await self._connect()
        elif received is not None:
            assert received.code in ENDS, received.details
            assert (received.kinds[-1:] == ["ended"]) == bool(received.kinds)
            assert received.code is not Code.OK or received.ended.reason == pb.END_REASON_COMPLETED
            assert [frame.index for frame in received.audio] == list(range(len(received.audio)))


@pytest.fixture
def line(models) -> Iterator[WebSocketSession]:
    line = WebSocketSession(models)
    yield line
    line.runner.run(line.close())
    line.runner.close()


@pytest.mark.effort
@settings(max_examples=effort(100, 1000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=SEQUENCE, goodbye=GOODBYE)
def test_any_sequence_of_messages_ends_cleanly(line, messages, goodbye):
    """No crash, no hang, no slot, session or task left."""

    async def bounded() -> None:
        async with asyncio.timeout(10):
            await line.case(messages, goodbye)
        async with asyncio.timeout(5):
            await line.runtime.admission.empty.wait()
            while line.at_work() > line.tasks or line.engine.opened != line.engine.closed:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    line.runner.run(bounded())
