"""Respond and RespondStream give the same responses as POST /v1/respond."""

from __future__ import annotations

import asyncio
import io

import grpc
import httpx
import numpy as np
import pytest
import soundfile

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.app import create_app
from gateway.audio.wav import wav
from tests.gateway.grpc.conftest import noise

QUESTION = wav(noise(5), 24_000)
FIXED = {"voice": "NATM1", "text_prompt": "You are Ana.", "sampling": pb.Sampling(seed=4), "max_steps": 6}


@pytest.fixture
async def over_rest(settings, manifest, engine):
    """Send the same request over REST."""
    app = create_app(settings, engine, manifest)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        form = {"voice": "NATM1", "text_prompt": "You are Ana.", "seed": "4", "max_steps": "6", "include": "tokens"}
        accept = {"Accept": "application/json"}
        answer = await client.post("/v1/respond", files={"audio": ("u.wav", QUESTION)}, data=form, headers=accept)
        assert answer.status_code == 200
        return answer.json()


async def test_the_response_equals_that_of_rest(stub, over_rest):
    answer = await stub.Respond(pb.RespondRequest(audio=QUESTION, include_tokens=True, **FIXED))
    for name in ("text_tokens", "transcript", "frames", "sample_rate", "voice", "seed"):
        assert getattr(answer, name) == over_rest[name], name
    for name in ("agent_codes", "user_codes"):
        np.testing.assert_array_equal(np.reshape(getattr(answer, name), (-1, 8)), over_rest[name])
    pcm, rate = soundfile.read(io.BytesIO(answer.audio))
    assert (len(pcm), rate) == (6 * 1920, 24_000)
    assert answer.timings.setup_ms > 0
    assert answer.timings.temporal.p99_ms >= answer.timings.temporal.median_ms > 0


async def test_a_stream_is_a_header_frames_and_a_summary(stub, over_rest):
    request = pb.RespondRequest(audio=QUESTION, include_tokens=True, **FIXED)
    chunks = [chunk async for chunk in stub.RespondStream(request)]
    assert [chunk.WhichOneof("chunk") for chunk in chunks] == ["header", *["audio"] * 6, "summary"]
    header, *middle, last = chunks
    assert (header.header.voice, header.header.seed, header.header.format) == ("NATM1", 4, pb.AUDIO_FORMAT_PCM_S16LE)
    assert (header.header.sample_rate, header.header.frame_size) == (24_000, 1920)
    frames = [chunk.audio for chunk in middle]
    assert [frame.index for frame in frames] == list(range(6))
    assert [frame.text_token for frame in frames] == over_rest["text_tokens"]
    np.testing.assert_array_equal([frame.agent_codes for frame in frames], over_rest["agent_codes"])
    assert last.summary.transcript == "".join(frame.text for frame in frames).strip() == over_rest["transcript"]
    np.testing.assert_array_equal(np.reshape(last.summary.user_codes, (-1, 8)), over_rest["user_codes"])
    whole = await stub.Respond(request)
    assert b"".join(frame.data for frame in frames) == whole.audio[44:]


async def test_tokens_are_sent_only_with_include_tokens(stub):
    answer = await stub.Respond(pb.RespondRequest(audio=QUESTION, **FIXED))
    assert not answer.text_tokens
    assert not answer.agent_codes
    assert not answer.user_codes


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"audio": b""}, "audio"),
        ({"audio": b"no sound"}, "audio"),
        ({"voice": "nobody"}, "voice"),
        ({"system_prompt": "nothing"}, "system_prompt"),
        ({"text_prompt": "a" * 20_001}, "text_prompt"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": 401}, "max_steps"),
        ({"sampling": pb.Sampling(audio_temperature=float("nan"))}, "audio_temperature"),
        ({"sampling": pb.Sampling(text_temperature=2.1, text_top_k=-1)}, "text_temperature,text_top_k"),
        ({"sampling": pb.Sampling(seed=-1)}, "seed"),
    ],
)
@pytest.mark.parametrize("method", ["Respond", "RespondStream"])
async def test_the_status_names_the_invalid_field(stub, method, fields, field):
    request = pb.RespondRequest(**{"audio": QUESTION, **fields})
    with pytest.raises(grpc.aio.AioRpcError) as refused:  # noqa: PT012
        call = getattr(stub, method)(request)
        await (call if method == "Respond" else call.read())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(refused.value.trailing_metadata())["personaplex-field"] == field


async def test_voice_audio_needs_the_operators_setting(stub, runtime):
    request = pb.RespondRequest(audio=QUESTION, voice_audio=wav(noise(10), 24_000), max_steps=3)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Respond(request)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    runtime.settings.allow_voice_audio = True
    assert (await stub.Respond(request)).voice == "voice_audio"


@pytest.mark.parametrize("method", ["Respond", "RespondStream"])
async def test_a_cancelled_rpc_frees_the_slot(stub, engine, runtime, method):
    engine.delay = 0.01
    call = getattr(stub, method)(pb.RespondRequest(audio=QUESTION, max_steps=400))
    await asyncio.sleep(0.2)
    assert runtime.admission.taken == 1
    call.cancel()
    async with asyncio.timeout(2):
        await runtime.admission.empty.wait()


async def test_an_unread_response_is_abandoned(server, runtime):
    runtime.settings.idle_seconds = 0.2
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.http2.bdp_probe", 0)]) as channel:
        method = channel.unary_stream(
            "/personaplex.v1.PersonaPlex/RespondStream",
            pb.RespondRequest.SerializeToString,
            pb.RespondChunk.FromString,
        )
        call = method(pb.RespondRequest(audio=QUESTION, max_steps=100))
        await call.read()
        async with asyncio.timeout(5):
            await runtime.admission.empty.wait()
        with pytest.raises(grpc.aio.AioRpcError) as ended:  # noqa: PT012
            while await call.read() is not grpc.aio.EOF:
                pass
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(ended.value.trailing_metadata())["personaplex-problem"] == "slow-client"


async def test_a_drain_does_not_wait_for_a_client_that_does_not_read(server, runtime):
    runtime.settings.drain_seconds = 0.1
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.http2.bdp_probe", 0)]) as channel:
        method = channel.unary_stream(
            "/personaplex.v1.PersonaPlex/RespondStream",
            pb.RespondRequest.SerializeToString,
            pb.RespondChunk.FromString,
        )
        call = method(pb.RespondRequest(audio=QUESTION, max_steps=400))
        await call.read()
        await asyncio.sleep(0.3)
        assert runtime.admission.taken == 1
        await runtime.sessions.drain()
        assert runtime.admission.taken == 0


async def test_failures_expose_no_internals(stub, runtime, engine, monkeypatch):
    engine.down = True
    with pytest.raises(grpc.aio.AioRpcError) as gone:
        await stub.Respond(pb.RespondRequest(audio=QUESTION, max_steps=3))
    assert gone.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(gone.value.trailing_metadata())["retry-after"] == "7"
    monkeypatch.setattr(runtime.leases, "open", None)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Respond(pb.RespondRequest(audio=QUESTION, max_steps=3))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert failed.value.details() == "internal error"
