"""Live sessions over gRPC that are resumed by another call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from gateway.session.runtime import Runtime
from gateway.settings import Settings
from tests.gateway.grpc.conftest import FRAME, receive_all
from tests.series import total

GREEDY = pb.Sampling(greedy=True)
F32 = pb.AUDIO_FORMAT_PCM_F32LE
Stub = personaplex_pb2_grpc.PersonaPlexStub


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"resume_seconds": 10.0, "live_speed": 1.0})


def audio(pcm: NDArray[np.float32]) -> pb.ConverseRequest:
    return pb.ConverseRequest(audio=pcm.tobytes())


def begin(stub: Stub, token: str) -> grpc.aio.StreamStreamCall:
    """A call without its first message."""
    return stub.Converse(metadata=(("x-resume-token", token),))


async def start(call: grpc.aio.StreamStreamCall, **fields: object) -> pb.Ready:
    await call.write(pb.ConverseRequest(start=pb.Start(format=F32, include_tokens=True, **fields)))  # type: ignore[arg-type]
    message = await call.read()
    assert message is not grpc.aio.EOF, await call.details()
    ready: pb.Ready = message.ready
    return ready


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_client_resumes_its_session(stub: Stub, runtime: Runtime) -> None:
    first, second = np.random.default_rng(1).uniform(-0.3, 0.3, (2, 5 * FRAME)).astype(np.float32)
    call = begin(stub, "new")
    ready = await start(call, sampling=GREEDY)
    await call.write(audio(first))
    before = []
    while len(before) < 6:
        message = await call.read()
        before += [message.audio] if message.HasField("audio") else []
    call.cancel()
    await until(lambda: total(runtime.metrics, "personaplex_connections_lost_total", api="grpc"))
    await asyncio.sleep(0.5)
    call = begin(stub, ready.resume.token)
    again = await start(call)
    for frame in second.reshape(-1, FRAME):
        await call.write(audio(frame))
        await asyncio.sleep(0.08)
    await call.write(pb.ConverseRequest(end=pb.End()))
    rest = await receive_all(call)
    assert rest.code is grpc.StatusCode.OK
    gaps = round(total(runtime.metrics, "personaplex_gap_frames_total"))
    assert again.index == 6 + gaps
    whole = np.concatenate([first, np.zeros(gaps * FRAME, np.float32), second])
    call = stub.Converse()
    await start(call, sampling=GREEDY)
    await call.write(audio(whole))
    await call.write(pb.ConverseRequest(end=pb.End()))
    expected = await receive_all(call)
    tokens = np.array([[frame.text_token, *frame.agent_codes] for frame in before] + rest.tokens.tolist())
    np.testing.assert_array_equal(tokens, np.delete(expected.tokens, np.s_[6 : again.index], axis=0))
    assert again.missed_text == "".join(frame.text for frame in expected.audio[6 : again.index])
    assert rest.ended.frames == 11 + gaps


async def test_the_old_call_is_told(stub: Stub) -> None:
    old = begin(stub, "new")
    call = begin(stub, (await start(old)).resume.token)
    await start(call)
    told = await receive_all(old)
    assert told.code is grpc.StatusCode.ABORTED
    assert told.trailing["personaplex-problem"] == "taken-over"
    await call.write(pb.ConverseRequest(end=pb.End()))
    assert (await receive_all(call)).code is grpc.StatusCode.OK


async def test_refusals(stub: Stub) -> None:
    refused = await receive_all(begin(stub, "none"))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert "no session to resume" in refused.details
    call = begin(stub, "new")
    other = begin(stub, (await start(call)).resume.token)
    await other.write(pb.ConverseRequest(start=pb.Start(voice="NATF0")))
    refused = await receive_all(other)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.trailing["personaplex-field"] == "voice"
    await call.write(pb.ConverseRequest(end=pb.End()))
    assert (await receive_all(call)).code is grpc.StatusCode.OK


async def test_a_session_without_token_ends_with_its_call(stub: Stub, runtime: Runtime) -> None:
    call = stub.Converse()
    assert not (await start(call)).HasField("resume")
    call.cancel()
    await until(lambda: not runtime.admission.taken)
