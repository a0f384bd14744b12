"""Rejected RPCs: no free slot, no valid key, draining server."""

from __future__ import annotations

import asyncio
import json
from time import monotonic

import grpc
import pytest

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from gateway.audio.wav import wav
from gateway.settings import Settings
from tests.gateway.grpc.conftest import END, audio, noise, receive_all, start
from tests.series import total

QUESTION = pb.RespondRequest(audio=wav(noise(5), 24_000), max_steps=3)


async def on_the_line(stub, **options):
    """A call that has become ready."""
    call = stub.Converse(**options)
    await call.write(start())
    assert (await call.read()).WhichOneof("message") == "ready"
    return call


async def refused_everywhere(stub, **options):
    """The status of each method, all of which must refuse: code, trailing metadata."""
    # Not with `write`, which fails differently if the status arrives first.
    received = await receive_all(stub.Converse(iter([start()]), **options))
    assert received.kinds == []
    answers = [(received.code, received.trailing)]
    for begin in (
        lambda: stub.Respond(QUESTION, **options),
        lambda: stub.RespondStream(QUESTION, **options).read(),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await begin()
        answers.append((refused.value.code(), dict(refused.value.trailing_metadata())))
    return answers


async def test_a_session_beyond_the_slots_is_rejected_until_one_ends(stub, talk):
    first, second = await on_the_line(stub), await on_the_line(stub)
    took = []
    for _ in range(3):
        began = monotonic()
        received = await talk([start()], done=False)
        took.append(monotonic() - began)
    # The machine's own pauses are not the gateway's.
    assert min(took) < 0.1
    assert received.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert received.details == "all 2 conversations are taken; try again in 7 s"
    for code, trailing in await refused_everywhere(stub):
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (trailing["personaplex-problem"], trailing["retry-after"]) == ("at-capacity", "7")
    await first.write(END)
    assert (await receive_all(first)).code is grpc.StatusCode.OK
    assert (await talk([start(), END])).code is grpc.StatusCode.OK
    second.cancel()


async def test_a_full_server_answers_before_the_start_message(stub):
    first, second = stub.Converse(), stub.Converse()
    for call in (first, second):
        await call.write(start())
        await call.read()
    began = monotonic()
    received = await receive_all(stub.Converse())
    assert received.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert monotonic() - began < 0.5
    first.cancel()
    second.cancel()


async def test_a_refusal_has_no_initial_metadata(stub, server):
    """A client's channel may only then repeat the call on another server."""
    config = {
        "methodConfig": [
            {
                "name": [{"service": "personaplex.v1.PersonaPlex"}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.05s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
    first, second = await on_the_line(stub), await on_the_line(stub)
    options = [("grpc.service_config", json.dumps(config))]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
        calls = personaplex_pb2_grpc.PersonaPlexStub(channel)
        third = calls.Converse(iter([start(), END]))
        await asyncio.sleep(0.1)
        await first.write(END)
        assert (await receive_all(third)).code is grpc.StatusCode.OK
    second.cancel()


async def test_a_client_that_sends_nothing_holds_a_slot_for_the_handshake_only(stub, runtime):
    runtime.settings.handshake_seconds = 0.2
    silent = stub.Converse()
    async with asyncio.timeout(2):
        while not runtime.admission.taken:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert (await receive_all(silent)).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert runtime.admission.taken == 0


class TestKeys:
    """With API keys."""

    @pytest.fixture
    def settings(self, models) -> Settings:
        return Settings(models=models, live_speed=0, api_keys=["first-key", "second-key"], key_conversations=1)

    @pytest.mark.parametrize("metadata", [None, (("x-api-key", "third-key"),), (("authorization", "Basic first-key"),)])
    async def test_rpcs_without_a_valid_key_are_rejected(self, stub, runtime, metadata):
        for code, _ in await refused_everywhere(stub, metadata=metadata):
            assert code is grpc.StatusCode.UNAUTHENTICATED
        assert runtime.admission.taken == 0

    @pytest.mark.parametrize("metadata", [("x-api-key", "first-key"), ("authorization", "Bearer first-key")])
    async def test_rpcs_with_a_valid_key_are_accepted(self, stub, talk, metadata):
        assert (await talk([start(), END], metadata=(metadata,))).code is grpc.StatusCode.OK
        assert (await stub.Respond(QUESTION, metadata=(metadata,))).frames == 3

    async def test_each_key_has_its_own_limit(self, stub, talk):
        first = await on_the_line(stub, metadata=(("x-api-key", "first-key"),))
        for code, trailing in await refused_everywhere(stub, metadata=(("x-api-key", "first-key"),)):
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert trailing["personaplex-problem"] == "too-many-for-key"
        assert (await talk([start(), END], metadata=(("x-api-key", "second-key"),))).code is grpc.StatusCode.OK
        first.cancel()


class TestDraining:
    """After a drain has begun."""

    async def test_new_conversations_are_rejected_and_others_continue(self, stub, runtime):
        call = await on_the_line(stub)
        drain = runtime.sessions.begin_drain()
        for code, trailing in await refused_everywhere(stub):
            assert code is grpc.StatusCode.UNAVAILABLE
            assert (trailing["personaplex-problem"], trailing["retry-after"]) == ("draining", "7")
        await call.write(audio(bytes(3840)))
        await call.write(END)
        received = await receive_all(call)
        assert (received.code, received.ended.frames) == (grpc.StatusCode.OK, 2)
        async with asyncio.timeout(1):
            await drain

    async def test_sessions_end_with_drained_after_the_drain_time(self, stub, runtime, engine):
        engine.delay = 0.005
        call = await on_the_line(stub)
        answer = asyncio.ensure_future(stub.Respond(pb.RespondRequest(audio=QUESTION.audio, max_steps=400)))
        await asyncio.sleep(0.1)
        runtime.settings.drain_seconds = 0.2
        began = monotonic()
        runtime.sessions.begin_drain()
        received = await receive_all(call)
        assert 0.2 <= monotonic() - began < 1
        assert received.ended.reason == pb.END_REASON_DRAINED
        assert (received.code, received.trailing["personaplex-reason"]) == (grpc.StatusCode.UNAVAILABLE, "drained")
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await answer
        assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
        await runtime.sessions.drain()
        assert total(runtime.metrics, "personaplex_ended_total", api="grpc", reason="drained") == 2
