"""Frames of several conversations as one request, against a stand-in for Triton."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from gateway.engine.backend import Draw, TemporalOutput
from gateway.engine.triton import sequence
from gateway.engine.triton.backend import TritonEngine, TritonSession
from gateway.errors import EngineError, EngineUnavailable
from gateway.manifest import Manifest
from tests.gateway.engine.triton.stand_in import Refusal, Server

DRAW = Draw(seed=3, position=40, top_k=25, temperature=0.7)


@pytest.fixture
def manifest(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"slots": 4})


async def begun(engine: TritonEngine, server: Server, count: int) -> list[TritonSession]:
    """Conversations in rows 0, 1, ... of every model, their calls forgotten."""
    sessions = [engine.open() for _ in range(count)]
    for index, session in enumerate(sessions):
        await session.encode(np.zeros(1920, np.float32))
        await session.prefill(np.full((2, 17), index), np.zeros((0, 32), np.float32), DRAW)
        await session.decode(np.arange(8))
    server.runtime.clear()
    return sessions


def keys(server: Server) -> list[int]:
    return [key for call in server.runtime for _, key in call["members"][0].tolist()]


async def test_frames_of_the_same_moment_are_one_request_on_the_lowest_row(engine: TritonEngine, server: Server):
    sessions = await begun(engine, server, 4)
    speakers = [sessions[3], sessions[1], sessions[2]]
    pcm = [np.full(1920, number, np.float32) for number in range(3)]
    codes = await asyncio.gather(*(session.encode(frame) for session, frame in zip(speakers, pcm, strict=True)))
    (call,) = server.runtime
    assert (call["model"], call["id"]) == ("mimi_encoder", sessions[1].sequence_id)
    assert (call["start"], call["end"]) == (False, False)
    assert call["members"][0, :, 0].tolist() == [3, 1, 2]
    assert np.array_equal(call["pcm"], np.stack(pcm)[None])
    assert [each.tolist() for each in codes] == [list(range(first, first + 8)) for first in (0, 8, 16)]


async def test_each_tensor_of_a_shared_step_is_its_members(engine: TritonEngine, server: Server):
    sessions = await begun(engine, server, 3)
    draws = [Draw(seed=row, position=41, top_k=5 + row, temperature=row / 4) for row in range(3)]
    columns = [np.full(17, row) for row in range(3)]
    runtime = zip(sessions, columns, draws, strict=True)
    thoughts = await asyncio.gather(*(session.step(column, draw) for session, column, draw in runtime))
    (call,) = server.runtime
    assert call["columns"].shape == (1, 3, 1, 17)
    assert call["columns"][0, :, 0, 0].tolist() == [0, 1, 2]
    assert call["sampler"].tolist() == [[[0, 41, 5], [1, 41, 6], [2, 41, 7]]]
    assert call["temperature"].tolist() == [[[0.0], [0.25], [0.5]]]
    assert [thought.text_token for thought in thoughts] == [17, 25, 33]
    assert [thought.hidden[1] for thought in thoughts] == [0.5, 8.5, 16.5]


async def test_a_conversation_has_a_key_of_its_own_in_every_model(engine: TritonEngine, server: Server):
    sessions = await begun(engine, server, 2)
    for _ in range(2):
        await asyncio.gather(*(session.decode(np.arange(8)) for session in sessions))
        await asyncio.gather(*(session.encode(np.zeros(1920, np.float32)) for session in sessions))
    assert len(server.runtime) == 4
    assert len(set(keys(server))) == 4
    assert set(keys(server)[:4]) == set(keys(server)[4:])


async def test_with_its_prompt_a_conversation_begins_in_the_encoder_and_shares_its_first_frame(
    engine: TritonEngine, server: Server
):
    sessions = [engine.open() for _ in range(3)]
    for index, session in enumerate(sessions):
        await session.prefill(np.full((2, 17), index), np.zeros((0, 32), np.float32), DRAW)
    began = server.asked("mimi_encoder")
    assert [(call["start"], call["members"][0, 0, 0]) for call in began] == 3 * [(True, -1)]
    server.runtime.clear()
    frames = [np.full(1920, number, np.float32) for number in range(3)]
    await asyncio.gather(*(session.encode(frame) for session, frame in zip(sessions, frames, strict=True)))
    (call,) = server.runtime
    assert call["members"][0, :, 0].tolist() == [0, 1, 2]
    assert not call["start"]


async def test_who_begins_does_so_alone(engine: TritonEngine, server: Server):
    sessions = [*await begun(engine, server, 2), engine.open()]
    await asyncio.gather(*(session.encode(np.zeros(1920, np.float32)) for session in sessions))
    assert sorted((call["members"].shape[1], call["start"]) for call in server.runtime) == [(1, True), (2, False)]


async def test_of_a_refused_request_each_member_is_told_alone(
    engine: TritonEngine, server: Server, monkeypatch: pytest.MonkeyPatch
):
    """Whatever is wrong with one of them is not the others' fault."""
    sessions = await begun(engine, server, 3)

    infer = server.infer

    async def checked(model: str, header: dict[str, Any], tensors: bytes) -> tuple[str, bytes]:
        """As a model that looks at everything before it does anything."""
        answer = await infer(model, header, tensors)
        if (server.runtime[-1]["pcm"] == 1).any():
            raise Refusal(400, "pcm: samples must be finite")
        return answer

    monkeypatch.setattr(server, "infer", checked)
    frames = [np.full(1920, row, np.float32) for row in range(3)]
    runtime = (session.encode(frame) for session, frame in zip(sessions, frames, strict=True))
    first, second, third = await asyncio.gather(*runtime, return_exceptions=True)
    assert isinstance(second, EngineError)
    for codes in (first, third):
        np.testing.assert_array_equal(codes, np.arange(8))
    assert [call["members"].shape[1] for call in server.runtime] == [3, 1, 1, 1]


async def test_what_fails_on_the_way_fails_for_all_and_is_not_repeated(
    engine: TritonEngine, server: Server, monkeypatch: pytest.MonkeyPatch
):
    """It may have been done in part."""
    sessions = await begun(engine, server, 2)

    async def broken() -> None:
        raise Refusal(500, "broken")

    server.before = broken
    tries: list[str] = []
    infer = server.infer

    async def counted(model: str, header: dict[str, Any], tensors: bytes) -> tuple[str, bytes]:
        tries.append(model)
        return await infer(model, header, tensors)

    monkeypatch.setattr(server, "infer", counted)
    runtime = (session.step(np.zeros(17, np.int64), DRAW) for session in sessions)
    answers = await asyncio.gather(*runtime, return_exceptions=True)
    assert [type(answer) for answer in answers] == [EngineError, EngineError]
    assert tries == ["temporal"]


async def test_a_triton_that_goes_is_told_to_all(engine: TritonEngine, server: Server):
    sessions = await begun(engine, server, 3)

    async def gone() -> None:
        for connection in list(server.connections):
            connection.transport.abort()

    server.before = gone
    answers = await asyncio.gather(*(session.decode(np.arange(8)) for session in sessions), return_exceptions=True)
    assert [type(answer) for answer in answers] == 3 * [EngineUnavailable]


async def test_one_who_goes_meanwhile_is_ended_after_the_shared_request(engine: TritonEngine, server: Server):
    """The row must not be another's before the model is done with it."""
    leaving, staying = await begun(engine, server, 2)

    async def slow() -> None:
        await asyncio.sleep(0.1)

    server.before = slow
    frame = np.zeros(1920, np.float32)
    runtime = [asyncio.create_task(session.encode(frame)) for session in (leaving, staying)]
    await asyncio.sleep(0.03)
    runtime[0].cancel()
    await leaving.close()
    assert (await runtime[1]).tolist() == list(range(8, 16))
    assert [call["end"] for call in server.runtime] == [False, True, True, True]
    assert server.runtime[0]["members"].shape[1] == 2


async def test_a_sequence_that_only_others_spoke_for_speaks_again_before_triton_forgets_it(
    engine: TritonEngine, server: Server, monkeypatch: pytest.MonkeyPatch
):
    sessions = await begun(engine, server, 3)
    now = sequence.monotonic()
    for session in sessions:
        session._encoder._clock = lambda: now + sequence.TOUCH_SECONDS / 2
    frame = np.zeros(1920, np.float32)
    await asyncio.gather(*(session.encode(frame) for session in sessions))
    for session in sessions:
        session._encoder._clock = lambda: now + 1.2 * sequence.TOUCH_SECONDS
    server.runtime.clear()
    for _ in range(2):
        await asyncio.gather(*(session.encode(frame) for session in sessions))
    firsts = [(call["id"], call["members"].shape[1]) for call in server.runtime]
    # The first one carried the others' frames half that time ago.
    assert sorted(firsts[:3]) == sorted((session.sequence_id, 1) for session in sessions)
    assert firsts[3:] == [(sessions[0].sequence_id, 3)]


async def test_depformer_calls_of_the_same_moment_are_one_request(engine: TritonEngine, server: Server):
    thoughts = [TemporalOutput(np.full(32, row, np.float32), row) for row in range(5)]
    draws = [Draw(seed=row, position=40, top_k=25, temperature=0.5) for row in range(5)]
    sessions = [engine.open() for _ in range(5)]
    runtime = zip(sessions, thoughts, draws, strict=True)
    codes = await asyncio.gather(*(session.depformer(thought, draw) for session, thought, draw in runtime))
    rows = engine.manifest.slots
    firsts = [8 + 8 * (row % rows) for row in range(5)]
    assert [answer.tolist() for answer in codes] == [list(range(first, first + 8)) for first in firsts]
    assert [len(call["hidden"]) for call in server.runtime] == [rows] * (5 // rows) + [5 % rows] * (5 % rows > 0)
    sent = np.concatenate([call["sampler"] for call in server.runtime])
    assert sent.tolist() == [[row, 40, 25] for row in range(5)]
    assert np.concatenate([call["text_token"] for call in server.runtime]).ravel().tolist() == list(range(5))
    hidden = np.concatenate([call["hidden"] for call in server.runtime])
    assert np.array_equal(hidden, np.stack([thought.hidden for thought in thoughts]))


async def test_a_depformer_call_that_fails_fails_for_all_who_shared_it(engine: TritonEngine, server: Server):
    async def refuse() -> None:
        raise Refusal(500, "broken")

    server.before = refuse
    runtime = [engine.open().depformer(TemporalOutput(np.zeros(32, np.float32), 1), DRAW) for _ in range(2)]
    answers = await asyncio.gather(*runtime, return_exceptions=True)
    assert [type(answer) for answer in answers] == [EngineError, EngineError]
