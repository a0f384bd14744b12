"""The Triton engine against a stand-in for Triton."""

from __future__ import annotations

import asyncio
from uuid import UUID

import numpy as np
import pytest

from gateway.engine.backend import Draw, TemporalOutput
from gateway.engine.triton.backend import TritonEngine, TritonSession
from gateway.errors import EngineError, EngineUnavailable
from gateway.manifest import Manifest
from tests.gateway.engine.triton.stand_in import Refusal, Server

DRAW = Draw(seed=2**62 + 1, position=40, top_k=25, temperature=0.7)


async def whole_frame(session: TritonSession) -> None:
    await session.encode(np.zeros(1920, np.float32))
    begun = await session.prefill(np.ones((3, 17), np.int64), np.zeros((0, 32), np.float32), DRAW)
    await session.depformer(begun.thought, DRAW)
    await session.decode(np.arange(8))


async def test_a_frame_goes_over_the_wire_as_it_is(session: TritonSession, server: Server):
    pcm = np.linspace(-1, 1, 1920).astype(np.float32)
    assert (await session.encode(pcm)).tolist() == list(range(8))
    call = server.runtime[-1]
    assert call["model"] == "mimi_encoder"
    assert call["pcm"].shape == (1, 1, 1920)
    assert np.array_equal(call["pcm"][0, 0], pcm)


async def test_a_step_after_a_prefill_carries_one_column_and_no_embedding(session: TritonSession, server: Server):
    await session.prefill(np.ones((5, 17), np.int64), np.zeros((4, 32), np.float32), DRAW)
    await session.step(np.arange(17), DRAW)
    call = server.runtime[-1]
    assert call["columns"].shape == (1, 1, 1, 17)
    assert call["columns"].ravel().tolist() == list(range(17))
    assert "embeddings" not in call


async def test_the_depformer_gets_the_thought_and_belongs_to_no_sequence(session: TritonSession, server: Server):
    codes = await session.depformer(TemporalOutput(np.arange(32, dtype=np.float32), 9), DRAW)
    assert codes.tolist() == list(range(8, 16))
    call = server.runtime[-1]
    assert call["hidden"].ravel().tolist() == list(range(32))
    assert call["text_token"].tolist() == [[9]]
    assert call["id"] is None


async def test_the_decoder_gives_samples(session: TritonSession, server: Server):
    pcm = await session.decode(np.arange(8))
    assert pcm.dtype == np.float32
    assert np.array_equal(pcm, np.linspace(-1, 1, 1920).astype(np.float32))
    assert server.runtime[-1]["codes"].tolist() == [[list(range(8))]]


async def test_only_the_first_call_to_each_model_starts_the_sequence(session: TritonSession, server: Server):
    for _ in range(2):
        await whole_frame(session)
    for model in ("mimi_encoder", "temporal", "mimi_decoder"):
        starts = [call["start"] for call in server.runtime if call["model"] == model]
        assert len(starts) > 1
        assert starts == [True] + (len(starts) - 1) * [False]
    assert not any(call["end"] for call in server.runtime)


async def test_the_stateful_models_share_one_fresh_id(engine: TritonEngine, server: Server):
    first, second = engine.open(), engine.open()
    await whole_frame(first)
    await whole_frame(second)
    ids = [call["id"] for call in server.runtime if call["model"] != "depformer"]
    assert list(dict.fromkeys(ids)) == [first.sequence_id, second.sequence_id]
    assert ids == sorted(ids, key=ids.index)
    assert UUID(first.sequence_id).version == UUID(second.sequence_id).version == 4
    assert first.sequence_id != second.sequence_id


async def test_close_ends_each_model_once_with_inputs_of_the_right_shape(session: TritonSession, server: Server):
    await whole_frame(session)
    server.runtime.clear()
    await session.close()
    await session.close()
    assert sorted(call["model"] for call in server.runtime) == ["mimi_decoder", "mimi_encoder", "temporal"]
    assert all(
        (call["start"], call["end"], call["id"]) == (False, True, session.sequence_id) for call in server.runtime
    )
    shapes = {name: call[name].shape for call in server.runtime for name in call if isinstance(call[name], np.ndarray)}
    assert shapes == {
        "pcm": (1, 1, 1920),
        "columns": (1, 1, 1, 17),
        "sampler": (1, 1, 3),
        "temperature": (1, 1, 1),
        "codes": (1, 1, 8),
        "members": (1, 1, 2),
    }


async def test_close_ends_only_what_was_begun(session: TritonSession, server: Server):
    await session.close()
    assert server.runtime == []
    other = session._engine.open()
    await other.encode(np.zeros(1920, np.float32))
    await other.close()
    assert [(call["model"], call["end"]) for call in server.runtime] == [
        ("mimi_encoder", False),
        ("mimi_encoder", True),
    ]


async def test_a_cancelled_call_reaches_the_model_whole_and_is_ended_after_it(session: TritonSession, server: Server):
    async def slow() -> None:
        await asyncio.sleep(0.1)

    await session.encode(np.zeros(1920, np.float32))
    server.before = slow
    columns = np.arange(5 * 17).reshape(5, 17)
    task = asyncio.create_task(session.prefill(columns, np.zeros((2, 32), np.float32), DRAW))
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await session.close()
    started, ended = server.asked("temporal")
    assert np.array_equal(started["columns"][0, 0], columns[4:])
    assert (started["start"], started["end"]) == (True, False)
    assert (ended["start"], ended["end"]) == (False, True)
    assert ended["columns"].shape == (1, 1, 1, 17)


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
    assert [call["end"] for call in server.runtime] == [False, True]


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
