"""The Triton engine against a stand-in for Triton."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from gateway.conversation.engine import Draw, Thought
from gateway.engine.pace import Pace
from gateway.engine.triton import TritonEngine, TritonSession
from gateway.errors import EngineError, EngineUnavailable
from gateway.manifest import Manifest
from tests.gateway.engine.stand_in import Refusal, Server

DRAW = Draw(seed=2**62 + 1, position=40, top_k=25, temperature=0.7)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def engine(server: Server, manifest: Manifest) -> AsyncIterator[TritonEngine]:
    listening, port = await server.listen()
    engine = TritonEngine(f"127.0.0.1:{port}", manifest, step_deadline=1, prefill_deadline=1, release_deadline=1)
    yield engine
    await engine.close()
    await server.stop(listening)


@pytest.fixture
def session(engine: TritonEngine) -> TritonSession:
    return engine.open()


async def whole_frame(session: TritonSession) -> None:
    await session.encode(np.zeros(1920, np.float32))
    begun = await session.prefill(np.ones((3, 17), np.int64), np.zeros((0, 32), np.float32), DRAW)
    await session.depformer(begun.thought, DRAW)
    await session.decode(np.arange(8))


async def test_a_frame_goes_over_the_wire_as_it_is(session: TritonSession, server: Server):
    pcm = np.linspace(-1, 1, 1920).astype(np.float32)
    assert (await session.encode(pcm)).tolist() == list(range(8))
    call = server.calls[-1]
    assert call["model"] == "mimi_encoder"
    assert call["pcm"].shape == (1, 1920)
    assert np.array_equal(call["pcm"][0], pcm)


async def test_a_prefix_that_is_not_known_is_fed_and_its_last_column_stepped(session: TritonSession, server: Server):
    columns = np.arange(5 * 17).reshape(5, 17)
    embeddings = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    begun = await session.prefill(columns, embeddings, DRAW)
    assert begun.cached == 0
    assert begun.thought.text_token == 17
    assert np.array_equal(begun.thought.hidden, np.arange(32) / 2)
    asked, fed, stepped = server.calls
    assert np.array_equal(asked["columns"][0], columns[4:])
    assert np.array_equal(fed["columns"][0], columns[:4])
    assert np.array_equal(fed["embeddings"][0], embeddings)
    assert np.array_equal(stepped["columns"][0], columns[4:])
    assert "embeddings" not in asked
    assert "prefix" not in stepped
    assert stepped["sampler"].tolist() == [[2**62 + 1, 40, 25]]
    assert stepped["temperature"].tolist() == [[np.float32(0.7)]]


async def test_what_is_asked_for_is_the_sum_of_what_is_fed(session: TritonSession, server: Server):
    columns = np.arange(5 * 17).reshape(5, 17)
    embeddings = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    await session.prefill(columns, embeddings, DRAW)
    content = embeddings.tobytes() + columns[:4].tobytes() + np.int64(4).tobytes()
    digest = np.frombuffer(hashlib.sha256(content).digest(), np.int64).tolist()
    asked, fed = (call["prefix"][0].tolist() for call in server.calls[:2])
    assert asked == [8, 8, *digest]
    assert fed == [0, 8, *digest]


async def test_a_prefix_that_is_known_is_not_sent_again(engine: TritonEngine, server: Server):
    columns, embeddings = np.arange(5 * 17).reshape(5, 17), np.ones((4, 32), np.float32)
    await engine.open().prefill(columns, embeddings, DRAW)
    server.calls.clear()
    begun = await engine.open().prefill(columns, embeddings, DRAW)
    assert (begun.cached, begun.thought.text_token) == (8, 17)
    (call,) = server.calls
    assert call["start"]
    assert np.array_equal(call["columns"][0], columns[4:])
    assert call["sampler"].tolist() == [[2**62 + 1, 40, 25]]


async def test_while_others_talk_a_prefix_goes_in_pieces(engine: TritonEngine, session: TritonSession, server: Server):
    columns, embeddings = np.arange(60 * 17).reshape(60, 17) % 400, np.ones((20, 32), np.float32)
    talker = engine.open()
    await talker.prefill(columns[:2], embeddings, DRAW)
    engine.pace = Pace(0.0)
    server.calls.clear()
    await session.prefill(columns, embeddings, DRAW)
    pieces = server.calls[1:-1]
    assert len(pieces) > 5
    assert np.array_equal(np.concatenate([call["columns"][0] for call in pieces]), columns[:-1])
    given = [call["embeddings"][0] for call in pieces if "embeddings" in call]
    assert np.array_equal(np.concatenate(given), embeddings)
    sizes = [call["columns"].shape[1] + (call["embeddings"].shape[1] if "embeddings" in call else 0) for call in pieces]
    assert [call["prefix"][0, 0] for call in pieces] == np.cumsum([0, *sizes[:-1]]).tolist()
    await talker.close()
    await session.close()
    server.calls.clear()
    await engine.open().prefill(columns[1:], embeddings, DRAW)
    assert len(server.calls) == 3, "nobody talks any more"


async def test_every_piece_waits_for_a_good_moment_and_nothing_else_does(engine: TritonEngine, server: Server):
    engine.pace = Pace(0.0)
    engine.talking.add(engine.open())
    moments: list[int] = []

    async def pause() -> None:
        moments.append(len(server.calls))

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
    assert sum("embeddings" in call for call in server.calls) == 1


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
    assert engine.fills == {}


async def test_a_step_after_a_prefill_carries_one_column_and_no_embedding(session: TritonSession, server: Server):
    await session.prefill(np.ones((5, 17), np.int64), np.zeros((4, 32), np.float32), DRAW)
    await session.step(np.arange(17), DRAW)
    call = server.calls[-1]
    assert call["columns"].shape == (1, 1, 17)
    assert call["columns"].ravel().tolist() == list(range(17))
    assert "embeddings" not in call


async def test_the_depformer_gets_the_thought_and_belongs_to_no_sequence(session: TritonSession, server: Server):
    codes = await session.depformer(Thought(np.arange(32, dtype=np.float32), 9), DRAW)
    assert codes.tolist() == list(range(8, 16))
    call = server.calls[-1]
    assert call["hidden"].ravel().tolist() == list(range(32))
    assert call["text_token"].tolist() == [[9]]
    assert call["id"] is None


async def test_the_decoder_gives_samples(session: TritonSession, server: Server):
    pcm = await session.decode(np.arange(8))
    assert pcm.dtype == np.float32
    assert np.array_equal(pcm, np.linspace(-1, 1, 1920).astype(np.float32))
    assert server.calls[-1]["codes"].tolist() == [list(range(8))]


async def test_only_the_first_call_to_each_model_starts_the_sequence(session: TritonSession, server: Server):
    for _ in range(2):
        await whole_frame(session)
    for model in ("mimi_encoder", "temporal", "mimi_decoder"):
        starts = [call["start"] for call in server.calls if call["model"] == model]
        assert len(starts) > 1
        assert starts == [True] + (len(starts) - 1) * [False]
    assert not any(call["end"] for call in server.calls)


async def test_the_stateful_models_share_one_fresh_id(engine: TritonEngine, server: Server):
    first, second = engine.open(), engine.open()
    await whole_frame(first)
    await whole_frame(second)
    ids = [call["id"] for call in server.calls if call["model"] != "depformer"]
    assert list(dict.fromkeys(ids)) == [first.sequence_id, second.sequence_id]
    assert ids == sorted(ids, key=ids.index)
    assert UUID(first.sequence_id).version == UUID(second.sequence_id).version == 4
    assert first.sequence_id != second.sequence_id


async def test_close_ends_each_model_once_with_inputs_of_the_right_shape(session: TritonSession, server: Server):
    await whole_frame(session)
    server.calls.clear()
    await session.close()
    await session.close()
    assert sorted(call["model"] for call in server.calls) == ["mimi_decoder", "mimi_encoder", "temporal"]
    assert all((call["start"], call["end"], call["id"]) == (False, True, session.sequence_id) for call in server.calls)
    shapes = {name: call[name].shape for call in server.calls for name in call if isinstance(call[name], np.ndarray)}
    assert shapes == {
        "pcm": (1, 1920),
        "columns": (1, 1, 17),
        "sampler": (1, 3),
        "temperature": (1, 1),
        "codes": (1, 8),
    }


async def test_close_ends_only_what_was_begun(session: TritonSession, server: Server):
    await session.close()
    assert server.calls == []
    other = session._engine.open()
    await other.encode(np.zeros(1920, np.float32))
    await other.close()
    assert [(call["model"], call["end"]) for call in server.calls] == [("mimi_encoder", False), ("mimi_encoder", True)]


async def test_a_cancelled_call_reaches_the_model_whole_and_is_ended_after_it(session: TritonSession, server: Server):
    async def slow() -> None:
        await asyncio.sleep(0.1)

    server.before = slow
    columns = np.arange(5 * 17).reshape(5, 17)
    task = asyncio.create_task(session.prefill(columns, np.zeros((2, 32), np.float32), DRAW))
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await session.close()
    started, ended = server.calls
    assert np.array_equal(started["columns"][0], columns[4:])
    assert (started["start"], started["end"]) == (True, False)
    assert (ended["start"], ended["end"]) == (False, True)
    assert ended["columns"].shape == (1, 1, 17)


async def test_a_cancelled_close_goes_on_and_can_be_waited_for_again(session: TritonSession, server: Server):
    await session.encode(np.zeros(1920, np.float32))

    async def slow() -> None:
        await asyncio.sleep(0.1)

    server.before = slow
    task = asyncio.create_task(session.close())
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await session.close()
    assert [call["end"] for call in server.calls] == [False, True]


async def test_an_end_that_fails_is_logged_and_not_raised(
    session: TritonSession, server: Server, caplog: pytest.LogCaptureFixture
):
    await session.encode(np.zeros(1920, np.float32))

    async def refuse() -> None:
        raise Refusal(503, "going down")

    server.before = refuse
    await session.close()
    assert "could not end mimi_encoder" in caplog.text
    assert "HTTP 503: going down" in caplog.text


@pytest.mark.parametrize(
    ("status", "details", "raised"),
    [
        (503, "Server is stopping", EngineUnavailable),
        (504, "too slow", EngineUnavailable),
        (
            400,
            "inference request for sequence x to model 'temporal' must specify the START flag on the first request",
            EngineUnavailable,
        ),
        (400, "unexpected shape\nfor input 'pcm'", EngineError),
        (500, "", EngineError),
    ],
)
async def test_what_triton_says_becomes_our_errors(
    session: TritonSession,
    server: Server,
    caplog: pytest.LogCaptureFixture,
    status: int,
    details: str,
    raised: type[Exception],
):
    async def refuse() -> None:
        raise Refusal(status, details)

    server.before = refuse
    with pytest.raises(raised) as told:
        await session.encode(np.zeros(1920, np.float32))
    assert "mimi_encoder" in str(told.value)
    if details:
        assert details.splitlines()[0] in caplog.text
        assert details not in str(told.value)


async def test_a_call_that_takes_too_long_is_given_up(session: TritonSession, server: Server):
    async def never() -> None:
        await asyncio.sleep(30)

    server.before = never
    session._engine.step_deadline = 0.1
    with pytest.raises(EngineUnavailable, match="not available"):
        await session.encode(np.zeros(1920, np.float32))


@pytest.mark.parametrize("missing", ["server", "mimi_encoder", "temporal", "depformer", "mimi_decoder"])
async def test_ready_is_the_server_and_each_of_the_four_models(engine: TritonEngine, server: Server, missing: str):
    assert await engine.ready()
    server.not_ready.add(missing)
    assert not await engine.ready()


async def test_a_triton_that_goes_and_comes_back_is_found_again(manifest: Manifest, server: Server):
    listening, port = await server.listen()
    engine = TritonEngine(f"127.0.0.1:{port}", manifest, step_deadline=1)
    assert await engine.ready()
    await server.stop(listening)
    assert not await engine.ready()
    with pytest.raises(EngineUnavailable):
        await engine.open().encode(np.zeros(1920, np.float32))
    listening, _ = await server.listen(port)
    assert await engine.ready()
    await engine.open().encode(np.zeros(1920, np.float32))
    await engine.close()
    await server.stop(listening)


async def test_a_triton_that_goes_in_the_middle_of_a_call_is_told_at_once(session: TritonSession, server: Server):
    async def gone() -> None:
        for connection in list(server.connections):
            connection.transport.abort()

    server.before = gone
    async with asyncio.timeout(0.5):
        with pytest.raises(EngineUnavailable):
            await session.encode(np.zeros(1920, np.float32))


async def test_what_is_not_http_is_an_error(manifest: Manifest):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    engine = TritonEngine(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", manifest, step_deadline=1)
    with pytest.raises(EngineUnavailable):
        await engine.open().encode(np.zeros(1920, np.float32))
    await engine.close()
    listening.close()


async def test_depformer_calls_of_the_same_moment_are_one_request(engine: TritonEngine, server: Server):
    thoughts = [Thought(np.full(32, row, np.float32), row) for row in range(5)]
    draws = [Draw(seed=row, position=40, top_k=25, temperature=0.5) for row in range(5)]
    sessions = [engine.open() for _ in range(5)]
    calls = zip(sessions, thoughts, draws, strict=True)
    codes = await asyncio.gather(*(session.depformer(thought, draw) for session, thought, draw in calls))
    rows = engine.manifest.slots
    firsts = [8 + 8 * (row % rows) for row in range(5)]
    assert [answer.tolist() for answer in codes] == [list(range(first, first + 8)) for first in firsts]
    assert [len(call["hidden"]) for call in server.calls] == [rows] * (5 // rows) + [5 % rows] * (5 % rows > 0)
    sent = np.concatenate([call["sampler"] for call in server.calls])
    assert sent.tolist() == [[row, 40, 25] for row in range(5)]
    assert np.concatenate([call["text_token"] for call in server.calls]).ravel().tolist() == list(range(5))
    hidden = np.concatenate([call["hidden"] for call in server.calls])
    assert np.array_equal(hidden, np.stack([thought.hidden for thought in thoughts]))


async def test_a_depformer_call_that_fails_fails_for_all_who_shared_it(engine: TritonEngine, server: Server):
    async def refuse() -> None:
        raise Refusal(500, "broken")

    server.before = refuse
    calls = [engine.open().depformer(Thought(np.zeros(32, np.float32), 1), DRAW) for _ in range(2)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [EngineError, EngineError]
