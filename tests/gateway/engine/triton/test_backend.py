"""The Triton backend against a stand-in for Triton."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.engine.backend import BatchRejected, TemporalOutput
from gateway.engine.triton.backend import RENEW_SECONDS, STATEFUL, TritonBackend
from gateway.errors import EngineError, EngineUnavailable
from gateway.manifest import Manifest
from tests.gateway.engine.triton.stand_in import Refusal, Server


def samplers(count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Seed, position and top-k differ by member; so does the temperature."""
    rows = np.arange(count)
    sampler = np.stack([2**62 + rows, 40 + rows, 25 + rows], axis=1)
    return sampler, (rows[:, None] / 4).astype(np.float32)


def silence(count: int = 1) -> NDArray[np.float32]:
    return np.zeros((count, 1920), np.float32)


async def opened(backend: TritonBackend, server: Server, count: int) -> NDArray[np.int64]:
    """Slots whose sequences are started, in rows 0, 1, ... of every model; the calls for it are forgotten."""
    for slot in range(count):
        await backend.open(slot)
    server.calls.clear()
    return np.arange(count)


async def test_a_slot_starts_its_sequence_in_each_model_with_nothing_to_run(backend: TritonBackend, server: Server):
    await backend.open(3)
    assert sorted(call["model"] for call in server.calls) == sorted(STATEFUL)
    for call in server.calls:
        assert (call["id"], call["start"], call["end"]) == ("slot-3", True, False)
        assert call["members"][0, 0, 0] == -1


async def test_a_slot_has_the_same_sequence_ids_and_new_keys_each_time(backend: TritonBackend, server: Server):
    for _ in range(2):
        await backend.open(3)
        await backend.release(3)
    starts = [call for call in server.calls if call["start"]]
    assert {call["id"] for call in starts} == {"slot-3"}
    assert len({int(call["members"][0, 0, 1]) for call in starts}) == 2 * len(STATEFUL)


async def test_a_batch_is_one_request_on_the_sequence_of_the_lowest_row_in_use(backend: TritonBackend, server: Server):
    """Of any conversation, whether it has a frame in the batch or not."""
    await opened(backend, server, 4)
    pcm = np.stack([np.full(1920, number, np.float32) for number in range(3)])
    codes = await backend.encode(np.array([3, 1, 2]), pcm)
    (call,) = server.calls
    assert (call["model"], call["id"], call["start"], call["end"]) == ("mimi_encoder", "slot-0", False, False)
    assert call["members"][0, :, 0].tolist() == [3, 1, 2]
    assert np.array_equal(call["pcm"], pcm[None])
    assert codes.tolist() == [list(range(first, first + 8)) for first in (0, 8, 16)]
    await backend.release(0)
    await backend.encode(np.array([3, 2]), pcm[:2])
    assert server.calls[-1]["id"] == "slot-1"


async def test_each_tensor_of_a_step_is_its_members(backend: TritonBackend, server: Server):
    slots = await opened(backend, server, 3)
    steps = np.arange(3 * 17).reshape(3, 17)
    sampler, temperature = samplers(3)
    output = await backend.step(slots, steps, sampler, temperature)
    (call,) = server.calls
    assert np.array_equal(call["columns"], steps[None, :, None])
    assert np.array_equal(call["sampler"], sampler[None])
    assert np.array_equal(call["temperature"], temperature[None])
    assert output.text_tokens.tolist() == [17, 25, 33]
    assert output.hidden[:, 1].tolist() == [0.5, 8.5, 16.5]


async def test_the_depformer_gets_the_temporal_output_and_no_sequence(backend: TritonBackend, server: Server):
    hidden = np.arange(5 * 32, dtype=np.float32).reshape(5, 32)
    sampler, temperature = samplers(5)
    codes = await backend.depformer(TemporalOutput(hidden, np.arange(5)), sampler, temperature)
    (call,) = server.calls
    assert call["id"] is None
    assert np.array_equal(call["hidden"], hidden)
    assert call["text_token"].ravel().tolist() == list(range(5))
    assert np.array_equal(call["sampler"], sampler)
    assert np.array_equal(call["temperature"], temperature)
    assert codes.tolist() == [list(range(8 + 8 * row, 16 + 8 * row)) for row in range(5)]


async def test_the_decoder_gives_samples(backend: TritonBackend, server: Server):
    slots = await opened(backend, server, 2)
    codes = np.arange(16).reshape(2, 8)
    pcm = await backend.decode(slots, codes)
    assert pcm.dtype == np.float32
    np.testing.assert_array_equal(pcm[0], np.linspace(-1, 1, 1920).astype(np.float32))
    assert np.array_equal(server.calls[-1]["codes"], codes[None])


async def test_a_conversation_has_a_key_of_its_own_in_every_model(backend: TritonBackend, server: Server):
    slots = await opened(backend, server, 2)
    for _ in range(2):
        await backend.encode(slots, silence(2))
        await backend.decode(slots, np.zeros((2, 8), np.int64))
    keys = [call["members"][0, :, 1].tolist() for call in server.calls]
    assert keys[:2] == keys[2:]
    assert len({key for pair in keys for key in pair}) == 4


async def test_release_ends_each_model_once_with_inputs_of_the_right_shape(backend: TritonBackend, server: Server):
    await opened(backend, server, 3)
    await backend.release(2)
    await backend.release(2)
    assert sorted(call["model"] for call in server.calls) == sorted(STATEFUL)
    assert {(call["id"], call["start"], call["end"]) for call in server.calls} == {("slot-2", False, True)}
    shapes = {name: call[name].shape for call in server.calls for name in call if isinstance(call[name], np.ndarray)}
    assert shapes == {
        "pcm": (1, 1, 1920),
        "columns": (1, 1, 1, 17),
        "sampler": (1, 1, 3),
        "temperature": (1, 1, 1),
        "codes": (1, 1, 8),
        "members": (1, 1, 2),
    }


async def test_a_sequence_ends_after_the_batch_that_it_carries(backend: TritonBackend, server: Server):
    """Another conversation's batch: an END that overtakes it would make Triton refuse it."""
    await opened(backend, server, 2)
    reached, answer = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        server.before = None
        reached.set()
        await answer.wait()

    server.before = slow
    batch = asyncio.create_task(backend.encode(np.array([1]), silence()))
    await reached.wait()
    release = asyncio.create_task(backend.release(0))
    await asyncio.sleep(0.01)
    assert not any(call["model"] == "mimi_encoder" and call["end"] for call in server.calls)
    answer.set()
    await release
    assert (await batch).shape == (1, 8)


async def test_a_model_ends_one_sequence_at_a_time(backend: TritonBackend, server: Server):
    """A batch between two conversations' last frames waits for one END, not for all."""
    await opened(backend, server, 4)
    running, most = 0, 0

    async def slow() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    server.before = slow
    await asyncio.gather(*(backend.release(slot) for slot in range(4)))
    assert most == len(STATEFUL)
    assert [len(server.asked(model)) for model in STATEFUL] == [4, 4, 4]


async def test_a_slot_that_was_never_opened_is_released_without_a_call(backend: TritonBackend, server: Server):
    await backend.release(0)
    assert server.calls == []


async def test_a_cancelled_call_reaches_the_model_whole_and_its_connection_is_kept(
    backend: TritonBackend, server: Server
):
    await opened(backend, server, 1)
    connections = len(server.connections)

    async def slow() -> None:
        await asyncio.sleep(0.1)

    server.before = slow
    call = asyncio.create_task(backend.open(1))
    await asyncio.sleep(0.03)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0.15)
    assert sorted(call["model"] for call in server.calls) == sorted(STATEFUL)
    assert len(server.connections) == connections


async def test_an_end_that_fails_is_logged_and_not_raised(
    backend: TritonBackend, server: Server, caplog: pytest.LogCaptureFixture
):
    await opened(backend, server, 1)

    async def refuse() -> None:
        raise Refusal(503, "going down")

    server.before = refuse
    await backend.release(0)
    assert "could not end the sequence of slot 0 in mimi_encoder" in caplog.text
    assert "HTTP 503: going down" in caplog.text


@pytest.mark.parametrize(
    ("status", "details", "raised"),
    [
        (503, "Server is stopping", EngineUnavailable),
        (504, "too slow", EngineUnavailable),
        (500, "", EngineError),
    ],
)
async def test_errors_of_triton_become_ours(
    backend: TritonBackend,
    server: Server,
    caplog: pytest.LogCaptureFixture,
    status: int,
    details: str,
    raised: type[Exception],
):
    """The batch may have been run in part, so it is not run again."""
    slots = await opened(backend, server, 2)

    async def refuse() -> None:
        raise Refusal(status, details)

    server.before = refuse
    with pytest.raises(raised) as error:
        await backend.encode(slots, silence(2))
    assert "mimi_encoder" in str(error.value)
    if details:
        assert details in caplog.text
        assert details not in str(error.value)


@pytest.mark.parametrize(
    ("details", "member_error"),
    [
        ("sequence x to model 'temporal' must specify the START flag on the first request", EngineUnavailable),
        ("unexpected shape\nfor input 'pcm'", EngineError),
    ],
)
async def test_a_request_that_changed_nothing_is_a_rejected_batch(
    backend: TritonBackend, server: Server, details: str, member_error: type[Exception]
):
    slots = await opened(backend, server, 2)

    async def refuse() -> None:
        raise Refusal(400, details)

    server.before = refuse
    with pytest.raises(BatchRejected) as rejected:
        await backend.encode(slots, silence(2))
    assert type(rejected.value.error) is member_error
    assert "'pcm'" not in str(rejected.value.error)


async def test_a_call_that_takes_too_long_is_given_up(manifest: Manifest, server: Server):
    listening, port = await server.listen()
    backend = TritonBackend(f"127.0.0.1:{port}", manifest, step_deadline=0.1)
    slots = await opened(backend, server, 1)

    async def never() -> None:
        await asyncio.sleep(30)

    server.before = never
    with pytest.raises(EngineUnavailable, match="not available"):
        await backend.encode(slots, silence())
    await backend.close()
    await server.stop(listening)


@pytest.mark.parametrize("missing", ["server", "mimi_encoder", "temporal", "depformer", "mimi_decoder"])
async def test_ready_is_the_server_and_each_of_the_four_models(backend: TritonBackend, server: Server, missing: str):
    assert await backend.ready()
    server.not_ready.add(missing)
    assert not await backend.ready()


async def test_a_triton_that_goes_and_comes_back_is_found_again(manifest: Manifest, server: Server):
    listening, port = await server.listen()
    backend = TritonBackend(f"127.0.0.1:{port}", manifest, step_deadline=1)
    assert await backend.ready()
    await server.stop(listening)
    assert not await backend.ready()
    with pytest.raises(EngineUnavailable):
        await backend.open(0)
    listening, _ = await server.listen(port)
    assert await backend.ready()
    await backend.open(0)
    await backend.close()
    await server.stop(listening)


async def test_a_triton_that_goes_in_the_middle_of_a_call_is_noticed_at_once(backend: TritonBackend, server: Server):
    slots = await opened(backend, server, 3)

    async def gone() -> None:
        for connection in list(server.connections):
            connection.transport.abort()

    server.before = gone
    async with asyncio.timeout(0.5):
        with pytest.raises(EngineUnavailable):
            await backend.decode(slots, np.zeros((3, 8), np.int64))


async def test_a_connection_that_triton_closes_after_its_answer_is_not_used_again(
    backend: TritonBackend, server: Server
):
    slots = await opened(backend, server, 1)
    server.close_after_answer = True
    for _ in range(5):
        await backend.encode(slots, silence())
    assert len(server.asked("mimi_encoder")) == 5


async def test_an_answer_that_is_not_http_is_an_error(manifest: Manifest):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    backend = TritonBackend(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", manifest, step_deadline=1)
    with pytest.raises(EngineUnavailable):
        await backend.open(0)
    await backend.close()
    listening.close()


async def test_a_sequence_that_only_others_carried_carries_a_batch_before_triton_forgets_it(
    manifest: Manifest, server: Server
):
    """Half of the time passes, then the rest: each sequence makes one request of its own in between."""
    listening, port = await server.listen()
    now = 1000.0
    backend = TritonBackend(f"127.0.0.1:{port}", manifest, step_deadline=1, clock=lambda: now)
    slots = await opened(backend, server, 3)
    now += RENEW_SECONDS / 2
    await backend.encode(slots, silence(3))
    now += 0.7 * RENEW_SECONDS
    for _ in range(3):
        await backend.encode(slots, silence(3))
    assert [call["id"] for call in server.calls] == ["slot-0", "slot-1", "slot-2", "slot-0"]
    assert all(call["members"].shape[1] == 3 for call in server.calls)
    await backend.close()
    await server.stop(listening)
