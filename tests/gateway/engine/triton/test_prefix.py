"""How conversations begin, against a stand-in for Triton: prefixes asked for, fed in pieces, and fed once."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import numpy as np
import pytest

from gateway.engine.backend import Draw
from gateway.engine.pace import Pace
from gateway.engine.triton.backend import TritonEngine, TritonSession
from tests.gateway.engine.triton.stand_in import Refusal, Server

DRAW = Draw(seed=2**62 + 1, position=40, top_k=25, temperature=0.7)


async def test_a_prefix_that_is_not_known_is_fed_and_its_last_column_stepped(session: TritonSession, server: Server):
    columns = np.arange(5 * 17).reshape(5, 17)
    embeddings = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    begun = await session.prefill(columns, embeddings, DRAW)
    assert begun.cached == 0
    assert begun.thought.text_token == 17
    assert np.array_equal(begun.thought.hidden, np.arange(32) / 2)
    asked, fed, stepped = server.asked("temporal")
    assert np.array_equal(asked["columns"][0, 0], columns[4:])
    assert np.array_equal(fed["columns"][0, 0], columns[:4])
    assert np.array_equal(fed["embeddings"][0, 0], embeddings)
    assert np.array_equal(stepped["columns"][0, 0], columns[4:])
    assert "embeddings" not in asked
    assert "prefix" not in stepped
    assert stepped["sampler"].tolist() == [[[2**62 + 1, 40, 25]]]
    assert stepped["temperature"].tolist() == [[[np.float32(0.7)]]]


async def test_what_is_asked_for_is_the_sum_of_what_is_fed(session: TritonSession, server: Server):
    columns = np.arange(5 * 17).reshape(5, 17)
    embeddings = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    await session.prefill(columns, embeddings, DRAW)
    content = embeddings.tobytes() + columns[:4].tobytes() + np.int64(4).tobytes()
    digest = np.frombuffer(hashlib.sha256(content).digest(), np.int64).tolist()
    asked, fed = (call["prefix"][0, 0].tolist() for call in server.asked("temporal")[:2])
    assert asked == [8, 8, *digest]
    assert fed == [0, 8, *digest]


async def test_a_prefix_that_is_known_is_not_sent_again(engine: TritonEngine, server: Server):
    columns, embeddings = np.arange(5 * 17).reshape(5, 17), np.ones((4, 32), np.float32)
    await engine.open().prefill(columns, embeddings, DRAW)
    server.runtime.clear()
    begun = await engine.open().prefill(columns, embeddings, DRAW)
    assert (begun.cached, begun.thought.text_token) == (8, 17)
    (call,) = server.asked("temporal")
    assert call["start"]
    assert np.array_equal(call["columns"][0, 0], columns[4:])
    assert call["sampler"].tolist() == [[[2**62 + 1, 40, 25]]]


async def test_while_others_talk_a_prefix_goes_in_pieces(engine: TritonEngine, session: TritonSession, server: Server):
    columns, embeddings = np.arange(60 * 17).reshape(60, 17) % 400, np.ones((20, 32), np.float32)
    talker = engine.open()
    await talker.prefill(columns[:2], embeddings, DRAW)
    engine.pace = Pace(0.0)
    server.runtime.clear()
    await session.prefill(columns, embeddings, DRAW)
    pieces = server.asked("temporal")[1:-1]
    assert len(pieces) > 5
    assert np.array_equal(np.concatenate([call["columns"][0, 0] for call in pieces]), columns[:-1])
    given = [call["embeddings"][0, 0] for call in pieces if "embeddings" in call]
    assert np.array_equal(np.concatenate(given), embeddings)
    sizes = [call["columns"].shape[2] + (call["embeddings"].shape[2] if "embeddings" in call else 0) for call in pieces]
    assert [call["prefix"][0, 0, 0] for call in pieces] == np.cumsum([0, *sizes[:-1]]).tolist()
    await talker.close()
    await session.close()
    server.runtime.clear()
    await engine.open().prefill(columns[1:], embeddings, DRAW)
    assert len(server.asked("temporal")) == 3, "nobody talks any more"


async def test_every_piece_waits_for_a_good_moment_and_nothing_else_does(engine: TritonEngine, server: Server):
    engine.pace = Pace(0.0)
    engine.talking.add(engine.open())
    moments: list[int] = []

    async def pause() -> None:
        moments.append(len(server.asked("temporal")))

    columns, none = np.arange(50 * 17).reshape(50, 17) % 400, np.zeros((0, 32), np.float32)
    await engine.open().prefill(columns, none, DRAW, pause)
    assert len(moments) == 6
    assert moments == list(range(1, 7)), "once before each piece; not before the question, nor the last column"
    await engine.open().prefill(columns, none, DRAW, pause)
    assert len(moments) == 6


async def test_only_one_piece_is_under_way_whoever_begins(
    engine: TritonEngine, server: Server, monkeypatch: pytest.MonkeyPatch
):
    under_way: list[int] = [0]
    infer = server.infer

    async def counted(model: str, header: dict[str, Any], tensors: bytes) -> tuple[str, bytes]:
        piece = any(tensor["name"] == "embeddings" for tensor in header["inputs"])
        under_way.append(under_way[-1] + piece)
        await asyncio.sleep(0.001)
        answer = await infer(model, header, tensors)
        under_way.append(under_way[-1] - piece)
        return answer

    monkeypatch.setattr(server, "infer", counted)
    engine.pace = Pace(0.0)
    engine.talking.add(engine.open())
    voices = [np.full((30, 32), voice, np.float32) for voice in range(3)]
    await asyncio.gather(*(engine.open().prefill(np.ones((1, 17), np.int64), voice, DRAW) for voice in voices))
    assert max(under_way) == 1
    assert under_way.count(1) >= 3 * 4


async def test_sessions_that_begin_alike_at_once_feed_the_prefix_once(engine: TritonEngine, server: Server):
    columns, embeddings = np.ones((20, 17), np.int64), np.ones((4, 32), np.float32)
    begun = await asyncio.gather(*(engine.open().prefill(columns, embeddings, DRAW) for _ in range(4)))
    assert sorted(each.cached for each in begun) == [0, 23, 23, 23]
    assert sum("embeddings" in call for call in server.asked("temporal")) == 1


async def test_a_question_answered_late_does_not_feed_what_has_been_fed_meanwhile(
    engine: TritonEngine, server: Server, monkeypatch: pytest.MonkeyPatch
):
    """The model says that it does not have the prefix; before that is heard another session has fed all of it."""
    columns, embeddings = np.ones((20, 17), np.int64), np.ones((4, 32), np.float32)
    asked, fed = asyncio.Event(), asyncio.Event()
    late = engine.open()
    infer = server.infer

    async def heard_late(model: str, header: dict[str, Any], tensors: bytes) -> tuple[str, bytes]:
        answer = await infer(model, header, tensors)
        if model == "temporal" and header["parameters"]["sequence_id"] == late.sequence_id:
            asked.set()
            await fed.wait()
        return answer

    monkeypatch.setattr(server, "infer", heard_late)
    second = asyncio.create_task(late.prefill(columns, embeddings, DRAW))
    await asked.wait()
    assert (await engine.open().prefill(columns, embeddings, DRAW)).cached == 0
    fed.set()
    assert (await second).cached == 23
    assert sum("embeddings" in call for call in server.asked("temporal")) == 1


async def test_one_that_goes_while_it_feeds_leaves_it_to_the_next(engine: TritonEngine, server: Server):
    columns, embeddings = np.ones((20, 17), np.int64), np.ones((4, 32), np.float32)
    reached = asyncio.Event()

    async def stuck() -> None:
        if engine.feeding.locked() and not reached.is_set():
            reached.set()
            await asyncio.sleep(0.1)
            raise Refusal(500, "broken")

    server.before = stuck
    first = asyncio.create_task(engine.open().prefill(columns, embeddings, DRAW))
    await reached.wait()
    second = asyncio.create_task(engine.open().prefill(columns, embeddings, DRAW))
    await asyncio.sleep(0.02)
    first.cancel()
    assert (await second).cached == 0
    # A task that was cancelled holds on to where that reached it.
    del first
    assert dict(engine.fills) == {}
