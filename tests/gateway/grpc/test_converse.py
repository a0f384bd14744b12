"""gRPC live sessions: messages, their order, and equality with an offline run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import grpc
import numpy as np
import pytest
import soxr

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1.personaplex_pb2_grpc import PersonaPlexStub
from gateway.audio.opus import OpusDecoder, OpusEncoder
from gateway.audio.stream import to_bytes
from gateway.session.recorded import split
from gateway.settings import Settings
from tests.gateway.grpc.conftest import END, FRAME, audio, noise, pieces, receive_all, start
from tests.series import total

FIXED = {"text_prompt": "You are Ana.", "voice": "NATF0", "include_tokens": True, "sampling": pb.Sampling(seed=1)}


async def offline(converse, pcm):
    """Return tokens [frames, 9] and samples of a conversation without an API, for the fixtures' persona and seed 1."""
    conversation = converse()
    frames = [await conversation.start()]
    for user in split(pcm, FRAME):
        frames.append(await conversation.step(user))
    await conversation.close()
    tokens = np.array([[frame.text_token, *frame.codes] for frame in frames])
    return tokens, np.concatenate([frame.pcm for frame in frames])


@pytest.fixture
async def talk_open(stub) -> AsyncIterator[Callable[..., grpc.aio.StreamStreamCall]]:
    """Calls on which the messages have been sent, and `ready` been read; cancelled at the end."""
    opened = []

    async def begin(*messages: pb.ConverseRequest) -> grpc.aio.StreamStreamCall:
        call = stub.Converse()
        opened.append(call)
        for message in messages:
            await call.write(message)
        assert (await call.read()).WhichOneof("message") == "ready"
        return call

    yield begin
    for call in opened:
        call.cancel()


async def test_tokens_and_samples_equal_an_offline_run(talk, converse):
    pcm = noise(7.4)
    received = await talk([start(**FIXED, format=pb.AUDIO_FORMAT_PCM_F32LE), *pieces(pcm.tobytes(), 4000), END])
    tokens, samples = await offline(converse, pcm)
    assert received.code is grpc.StatusCode.OK
    np.testing.assert_array_equal(received.tokens, tokens)
    np.testing.assert_array_equal(received.pcm("<f4"), samples)
    assert [frame.index for frame in received.audio] == list(range(9))


async def test_the_order_of_the_messages(talk):
    received = await talk([start(**FIXED), *pieces(to_bytes(noise(14), "pcm_s16le"), 3840), END])
    assert received.kinds[:4] == ["ready", "audio", "audio", "stats"]
    assert received.kinds[-1] == "ended"
    assert received.kinds.count("audio") == 15
    assert received.kinds.count("stats") == 2
    assert received.ready.conversation_id
    assert (received.ready.voice, received.ready.seed, received.ready.sample_rate, received.ready.frame_size) == (
        "NATF0", 1, 24_000, 1920,
    )  # fmt: skip
    assert received.ready.format == pb.AUDIO_FORMAT_PCM_S16LE
    assert received.ready.setup_ms > 0
    ended = received.ended
    assert ended.reason == pb.END_REASON_COMPLETED
    assert (ended.frames, ended.dropped_frames) == (15, 0)
    assert ended.seconds == pytest.approx(1.2)
    assert ended.transcript == "".join(frame.text for frame in received.audio).strip() != ""
    assert {len(frame.data) for frame in received.audio} == {3840}


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize(
    ("chosen", "encoded"), [(pb.AUDIO_FORMAT_PCM_S16LE, "pcm_s16le"), (pb.AUDIO_FORMAT_PCM_F32LE, "pcm_f32le")]
)
async def test_any_format_and_rate_equals_resampling_at_once(talk, converse, rate, chosen, encoded):
    sent = to_bytes(noise(4.3, rate), encoded)
    samples = np.frombuffer(sent, "<i2") / np.float32(32768) if encoded == "pcm_s16le" else np.frombuffer(sent, "<f4")
    received = await talk([start(**FIXED, format=chosen, sample_rate=rate), *pieces(sent, 1000), END])
    assert received.code is grpc.StatusCode.OK
    tokens, _ = await offline(converse, soxr.resample(samples, rate, 24_000, quality="HQ"))
    # The fake codec depends on each sample's last bit, the resampler's on how the stream is cut; so does its length.
    assert abs(len(received.audio) - len(tokens)) <= 1
    assert received.ready.sample_rate == 24_000


async def test_opus_in_both_directions(talk, converse):
    encoder, decoder = OpusEncoder(), OpusDecoder()
    packets = [encoder.encode(frame) for frame in split(noise(6), FRAME)]
    received = await talk([start(**FIXED, format=pb.AUDIO_FORMAT_OPUS), *map(audio, packets), END])
    assert received.ready.format == pb.AUDIO_FORMAT_OPUS
    tokens, _ = await offline(converse, np.concatenate([decoder.decode(packet) for packet in packets]))
    np.testing.assert_array_equal(received.tokens, tokens)
    back = OpusDecoder()
    assert [len(back.decode(frame.data)) for frame in received.audio] == [FRAME] * 7


async def test_closing_the_sending_side_ends_the_session(talk):
    received = await talk([start(**FIXED), audio(to_bytes(noise(2.5), "pcm_s16le"))])
    assert received.code is grpc.StatusCode.OK
    assert received.ended.frames == 4, "the last half of a frame is answered too"


async def test_without_user_audio_there_is_only_the_forced_silence(talk):
    received = await talk([start(**FIXED), END])
    assert [frame.index for frame in received.audio] == [0]
    assert received.code is grpc.StatusCode.OK


async def test_without_include_tokens_there_are_none(talk):
    received = await talk([start(), audio(bytes(3840)), END])
    assert not any(frame.HasField("text_token") or frame.agent_codes for frame in received.audio)


async def test_agent_frames_arrive_one_step_ahead(stub):
    """The frame for user frame u leaves before anything of user frame u + 1 has come."""
    call = stub.Converse()
    await call.write(start())
    got = []
    for count in range(5):
        while len(got) <= count:
            message = await asyncio.wait_for(call.read(), 5)
            if message.WhichOneof("message") == "audio":
                got.append(message.audio.index)
        await call.write(audio(bytes(3840)))
    assert got == [0, 1, 2, 3, 4]
    call.cancel()


async def test_silence_fills_gaps_with_on_gap_silence(talk_open, runtime):
    call = await talk_open(start(on_gap=pb.ON_GAP_SILENCE))
    indexes = []
    while len(indexes) < 4:
        message = await asyncio.wait_for(call.read(), 5)
        if message.WhichOneof("message") == "audio":
            indexes.append(message.audio.index)
    assert indexes == [0, 1, 2, 3]
    call.cancel()


class TestLimits:
    """Ends of a session that the client does not end."""

    @pytest.fixture
    def settings(self, models) -> Settings:
        return Settings(
            models=models,
            live_speed=0,
            idle_seconds=0.3,
            max_call_seconds=0.8,
            warn_seconds=0.6,
            handshake_seconds=0.2,
            output_frames=5,
            max_message_bytes=10_000,
        )

    async def test_idle(self, stub):
        call = stub.Converse()
        await call.write(start())
        received = await receive_all(call)
        assert received.kinds[-1] == "ended"
        assert received.ended.reason == pb.END_REASON_IDLE
        assert (received.code, received.trailing["personaplex-reason"]) == (grpc.StatusCode.DEADLINE_EXCEEDED, "idle")
        assert received.details == received.ended.message == "no audio came for 0.3 s"

    async def test_the_maximum_duration_after_a_warning(self, stub):
        call = stub.Converse()
        await call.write(start())

        async def send() -> None:
            while True:
                await call.write(audio(bytes(3840)))
                await asyncio.sleep(0.05)

        sending = asyncio.create_task(send())
        received = await receive_all(call)
        sending.cancel()
        (warning,) = [message.warning for message in received.messages if message.WhichOneof("message") == "warning"]
        assert warning.code == "max_duration"
        assert 0 < warning.seconds_left <= 0.6
        assert received.ended.reason == pb.END_REASON_MAX_DURATION
        assert received.code is grpc.StatusCode.DEADLINE_EXCEEDED

    async def test_no_first_message(self, stub, runtime):
        call = stub.Converse()
        received = await receive_all(call)
        assert received.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert received.trailing["personaplex-problem"] == "handshake-timeout"
        assert received.kinds == []
        assert runtime.admission.taken == 0

    async def test_a_message_that_is_too_long(self, talk):
        received = await talk([start(), audio(bytes(10_002))], done=False)
        assert received.code is grpc.StatusCode.INVALID_ARGUMENT
        assert received.trailing["personaplex-problem"] == "payload-too-large"
        assert received.ended.reason == pb.END_REASON_CLIENT_ERROR

    async def test_a_client_that_does_not_read(self, server, runtime):
        runtime.settings.max_message_bytes = 2**20
        # A client whose transport is blocked accepts no more than its window.
        options = [("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
            call = PersonaPlexStub(channel).Converse()
            await call.write(start(format=pb.AUDIO_FORMAT_PCM_F32LE))
            await call.write(audio(bytes(40 * 7680)))
            async with asyncio.timeout(5):
                await runtime.admission.empty.wait()
            assert total(runtime.metrics, "personaplex_ended_total", api="grpc", reason="slow_client") == 1
            received = await receive_all(call)
            assert received.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert received.trailing["personaplex-reason"] == "slow_client"


async def test_flow_control_limits_a_client_that_sends_ahead(stub, engine, runtime):
    """Back-pressure: unprocessed audio stays with the client, and nothing is dropped."""
    runtime.settings.live_speed = 1.0
    call = stub.Converse()
    await call.write(start())
    sent = 0
    with pytest.raises(TimeoutError):  # noqa: PT012
        async with asyncio.timeout(0.5):
            while True:
                await call.write(audio(bytes(38_400)))
                sent += 10
    # The capacity of the input queue and the transport's buffers, and the frames processed meanwhile.
    assert sent < 250
    assert total(runtime.metrics, "personaplex_dropped_frames_total", api="grpc") == 0
    call.cancel()


async def test_a_cancelled_rpc_frees_the_slot(talk_open, runtime):
    call = await talk_open(start(), audio(bytes(3840)))
    assert runtime.admission.taken == 1
    call.cancel()
    async with asyncio.timeout(2):
        await runtime.admission.empty.wait()
    assert total(runtime.metrics, "personaplex_ended_total", api="grpc", reason="disconnected") == 1


async def test_a_lost_connection_frees_the_slot(server, runtime):
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
    call = PersonaPlexStub(channel).Converse()
    await call.write(start())
    await call.read()
    await channel.close()
    async with asyncio.timeout(2):
        await runtime.admission.empty.wait()


class TestHalfOpen:
    """A network that drops all packets in both directions."""

    @pytest.fixture
    def settings(self, models, monkeypatch) -> Settings:
        monkeypatch.setattr("gateway.api.grpc.server.KEEPALIVE_MS", 500)
        return Settings(models=models)

    async def test_the_session_ends_and_the_slot_is_freed(self, server, runtime):
        swallow = asyncio.Event()

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.CancelledError):
                while data := await source.read(65_536):
                    if not swallow.is_set():
                        sink.write(data)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back, forth = await asyncio.open_connection("127.0.0.1", server.port)
            await asyncio.gather(carry(reader, forth), carry(back, writer))

        proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        call = PersonaPlexStub(channel).Converse()
        await call.write(start())
        assert (await call.read()).WhichOneof("message") == "ready"
        swallow.set()
        async with asyncio.timeout(5):
            await runtime.admission.empty.wait()
        assert total(runtime.metrics, "personaplex_ended_total", api="grpc", reason="disconnected") == 1
        call.cancel()
        await channel.close()
        proxy.close()


async def test_a_failing_backend_ends_the_session(talk_open, engine):
    call = await talk_open(start())
    engine.down = True
    await call.write(audio(bytes(3840)))
    received = await receive_all(call)
    assert received.ended.reason == pb.END_REASON_ENGINE
    assert received.code is grpc.StatusCode.UNAVAILABLE
    assert received.trailing["retry-after"] == "7"


async def test_stats_have_the_maximum_latency_since_the_last_ones(talk_open, engine):
    call = await talk_open(start(**FIXED))
    stats = []
    for u in range(13):
        # Each of a frame's four stages.
        engine.delay = 0.05 if u == 6 else 0.0
        await call.write(audio(to_bytes(noise(1), "pcm_s16le")))
        # Frame 0 needs no user frame; others do.
        while (message := await call.read()).audio.index != u + 1:
            stats += [message.stats] if message.HasField("stats") else []
        await asyncio.sleep(0.08)
    stats.append((await call.read()).stats)
    assert [item.index for item in stats] == [1, 13]
    assert stats[0].latency_ms < 200 <= stats[1].latency_ms
