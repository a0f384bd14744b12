"""Prompts against a stand-in for Triton: asked for by digest, fed in chunks, and fed once."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.engine.backend import Prefilled, Wait
from gateway.engine.prefill import ChunkPacer
from gateway.engine.prefix import PromptPrefix
from gateway.engine.triton.backend import END_PAUSE, STATEFUL, TritonBackend
from gateway.errors import EngineError
from tests.gateway.engine.triton.stand_in import Refusal, Server

SAMPLER, TEMPERATURE = np.array([[2**62 + 1, 40, 25]]), np.array([[0.7]], np.float32)
STEPS = np.arange(5 * 17).reshape(5, 17)
EMBEDDINGS = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)


def prompt(steps: NDArray[np.int64] = STEPS, embeddings: NDArray[np.float32] = EMBEDDINGS) -> PromptPrefix:
    return PromptPrefix(embeddings, steps, np.full(17, -1))


async def at_once() -> None:
    """No batch runs."""


async def prefill(backend: TritonBackend, slot: int, prefix: PromptPrefix, wait: Wait = at_once) -> Prefilled:
    await backend.open(slot)
    return await backend.prefill(slot, prefix, SAMPLER, TEMPERATURE, wait)


def prompt_calls(server: Server) -> list[dict[str, Any]]:
    """Calls to the temporal model but the START of a sequence."""
    return [call for call in server.asked("temporal") if not call["start"]]


async def test_a_new_prompt_is_fed_and_its_last_step_run(backend: TritonBackend, server: Server):
    begun = await prefill(backend, 0, prompt())
    assert begun.cached == 0
    assert begun.output.text_tokens.tolist() == [17]
    assert np.array_equal(begun.output.hidden[0], np.arange(32) / 2)
    asked, fed, stepped = prompt_calls(server)
    assert np.array_equal(asked["columns"][0, 0], STEPS[4:])
    assert np.array_equal(fed["columns"][0, 0], STEPS[:4])
    assert np.array_equal(fed["embeddings"][0, 0], EMBEDDINGS)
    assert np.array_equal(stepped["columns"][0, 0], STEPS[4:])
    assert "embeddings" not in asked
    assert "prefix" not in stepped
    assert stepped["sampler"].tolist() == [SAMPLER.tolist()]
    assert stepped["temperature"].tolist() == [[[np.float32(0.7)]]]


async def test_the_digest_is_that_of_what_is_fed(backend: TritonBackend, server: Server):
    await prefill(backend, 0, prompt())
    content = EMBEDDINGS.tobytes() + STEPS[:4].tobytes() + np.int64(4).tobytes()
    digest = np.frombuffer(hashlib.sha256(content).digest(), np.int64).tolist()
    asked, fed = (call["prefix"][0, 0].tolist() for call in prompt_calls(server)[:2])
    assert asked == [8, 8, *digest]
    assert fed == [0, 8, *digest]


async def test_a_known_prompt_is_not_sent_again(backend: TritonBackend, server: Server):
    await prefill(backend, 0, prompt())
    server.calls.clear()
    begun = await prefill(backend, 1, prompt())
    assert (begun.cached, begun.output.text_tokens.tolist()) == (8, [17])
    (call,) = prompt_calls(server)
    assert np.array_equal(call["columns"][0, 0], STEPS[4:])
    assert call["sampler"].tolist() == [SAMPLER.tolist()]


async def test_while_others_talk_a_prompt_goes_in_small_chunks(backend: TritonBackend, server: Server):
    steps, embeddings = np.arange(60 * 17).reshape(60, 17) % 400, np.ones((20, 32), np.float32)
    await prefill(backend, 0, prompt())
    backend.pacer = ChunkPacer(0.0)
    server.calls.clear()
    await prefill(backend, 1, prompt(steps, embeddings))
    chunks = prompt_calls(server)[1:-1]
    assert len(chunks) > 5
    assert np.array_equal(np.concatenate([call["columns"][0, 0] for call in chunks]), steps[:-1])
    given = [call["embeddings"][0, 0] for call in chunks if "embeddings" in call]
    assert np.array_equal(np.concatenate(given), embeddings)
    sizes = [call["columns"].shape[2] + (call["embeddings"].shape[2] if "embeddings" in call else 0) for call in chunks]
    assert [call["prefix"][0, 0, 0] for call in chunks] == np.cumsum([0, *sizes[:-1]]).tolist()
    await backend.release(0)
    await backend.release(1)
    server.calls.clear()
    await prefill(backend, 2, prompt(steps[1:], embeddings))
    assert len(prompt_calls(server)) == 3, "nobody else talks now"


async def test_every_chunk_waits_for_a_gap_between_batches_and_nothing_else_does(
    backend: TritonBackend, server: Server
):
    await prefill(backend, 0, prompt())
    backend.pacer = ChunkPacer(0.0)
    server.calls.clear()
    moments: list[int] = []

    async def wait() -> None:
        moments.append(len(prompt_calls(server)))

    long = prompt(np.arange(50 * 17).reshape(50, 17) % 400, np.zeros((0, 32), np.float32))
    await prefill(backend, 1, long, wait)
    assert moments == list(range(1, 7)), "once before each chunk; not before the question, nor the last step"
    await prefill(backend, 2, long, wait)
    assert len(moments) == 6


async def test_only_one_chunk_is_in_flight_however_many_conversations_start(
    backend: TritonBackend, server: Server, monkeypatch: pytest.MonkeyPatch
):
    in_flight: list[int] = [0]
    infer = server.infer

    async def counted(model: str, header: dict[str, Any], tensors: bytes) -> tuple[str, bytes]:
        chunk = any(tensor["name"] == "embeddings" for tensor in header["inputs"])
        in_flight.append(in_flight[-1] + chunk)
        await asyncio.sleep(0.001)
        answer = await infer(model, header, tensors)
        in_flight.append(in_flight[-1] - chunk)
        return answer

    await prefill(backend, 0, prompt())
    monkeypatch.setattr(server, "infer", counted)
    backend.pacer = ChunkPacer(0.0)
    voices = [np.full((30, 32), voice, np.float32) for voice in range(3)]
    last = np.ones((1, 17), np.int64)
    await asyncio.gather(*(prefill(backend, slot, prompt(last, voice)) for slot, voice in enumerate(voices, 1)))
    assert max(in_flight) == 1
    assert in_flight.count(1) >= 3 * 4


async def test_conversations_that_start_alike_at_once_feed_the_prompt_once(backend: TritonBackend, server: Server):
    same = prompt(np.ones((20, 17), np.int64), np.ones((4, 32), np.float32))
    begun = await asyncio.gather(*(prefill(backend, slot, same) for slot in range(4)))
    assert sorted(each.cached for each in begun) == [0, 23, 23, 23]
    assert sum("embeddings" in call for call in server.asked("temporal")) == 1


async def test_an_answer_that_comes_late_does_not_feed_what_was_fed_meanwhile(
    backend: TritonBackend, server: Server, monkeypatch: pytest.MonkeyPatch
):
    """The model does not have the prompt; before that answer arrives another conversation has fed all of it."""
    same = prompt(np.ones((20, 17), np.int64), np.ones((4, 32), np.float32))
    asked, fed = asyncio.Event(), asyncio.Event()
    infer = server.infer

    async def late(model: str, header: dict[str, Any], tensors: bytes) -> tuple[str, bytes]:
        parameters = header["parameters"]
        answer = await infer(model, header, tensors)
        if model == "temporal" and not parameters["sequence_start"] and not asked.is_set():
            asked.set()
            await fed.wait()
        return answer

    monkeypatch.setattr(server, "infer", late)
    second = asyncio.create_task(prefill(backend, 7, same))
    await asked.wait()
    assert (await prefill(backend, 0, same)).cached == 0
    fed.set()
    assert (await second).cached == 23
    assert sum("embeddings" in call for call in server.asked("temporal")) == 1


async def test_a_conversation_that_ends_while_it_feeds_leaves_the_rest_to_the_next(
    backend: TritonBackend, server: Server, monkeypatch: pytest.MonkeyPatch
):
    same = prompt(np.ones((20, 17), np.int64), np.ones((4, 32), np.float32))
    reached = asyncio.Event()
    infer = server.infer

    async def broken_once(model: str, header: dict[str, Any], tensors: bytes) -> tuple[str, bytes]:
        if any(tensor["name"] == "embeddings" for tensor in header["inputs"]) and not reached.is_set():
            reached.set()
            await asyncio.sleep(0.1)
            raise Refusal(500, "broken")
        return await infer(model, header, tensors)

    monkeypatch.setattr(server, "infer", broken_once)
    first = asyncio.create_task(prefill(backend, 0, same))
    await reached.wait()
    second = asyncio.create_task(prefill(backend, 1, same))
    await asyncio.sleep(0.02)
    first.cancel()
    assert (await second).cached == 0


async def test_a_last_step_that_the_model_rejects_is_an_engine_error(
    backend: TritonBackend, server: Server, monkeypatch: pytest.MonkeyPatch
):
    infer = server.infer

    async def rejecting(model: str, header: dict[str, Any], tensors: bytes) -> tuple[str, bytes]:
        names = {tensor["name"] for tensor in header["inputs"]}
        if model == "temporal" and not header["parameters"]["sequence_start"] and "prefix" not in names:
            raise Refusal(400, "columns: values must be in 0..16")
        return await infer(model, header, tensors)

    monkeypatch.setattr(server, "infer", rejecting)
    with pytest.raises(EngineError):
        await prefill(backend, 0, prompt())


async def test_a_sequence_ends_after_the_chunk_of_its_cancelled_prompt(backend: TritonBackend, server: Server):
    await backend.open(0)
    chunk_came = asyncio.Event()

    async def slow() -> None:
        if server.asked("temporal")[1:]:
            server.before = None
            chunk_came.set()
            await asyncio.sleep(0.1)

    server.before = slow
    feeding = asyncio.create_task(backend.prefill(0, prompt(), SAMPLER, TEMPERATURE, at_once))
    await chunk_came.wait()
    feeding.cancel()
    await asyncio.wait([feeding])
    await backend.release(0)
    _, fed, ended = prompt_calls(server)
    assert "embeddings" in fed
    assert ended["end"]


async def test_ends_leave_time_for_the_batches_of_conversations_that_talk(
    backend: TritonBackend, server: Server, monkeypatch: pytest.MonkeyPatch
):
    for slot in range(3):
        await prefill(backend, slot, prompt())
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def at_once(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", at_once)
    await asyncio.gather(backend.release(0), backend.release(1))
    assert pauses.count(END_PAUSE) == 2 * len(STATEFUL)
    pauses.clear()
    await backend.release(2)
    assert END_PAUSE not in pauses, "nobody talks"
