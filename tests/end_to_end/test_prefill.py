"""A prompt is prefilled in large chunks, once: a persona's next conversation starts from the cached result."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.engine.backend import Prefilled, TemporalOutput
from gateway.engine.prefill import MIN_STEPS, ChunkPacer
from gateway.engine.prefix import PromptPrefix
from gateway.engine.triton.backend import TritonBackend
from gateway.manifest import Manifest
from gateway.session.persona import prefix_of_preset
from gateway.voices.registry import VoiceRegistry
from tests.end_to_end.conftest import Service, respond, wav

GREEDY = np.zeros((1, 1), np.float32)


def sampler(position: int) -> NDArray[np.int64]:
    return np.array([[1, position, 1]])


def test_a_persona_is_prefilled_in_one_execution_and_then_not_at_all(tiny_service: Service):
    """Besides START, the request for the cached prompt, the step behind it, and END."""
    answers, executions = [], []
    for _ in range(2):
        before = tiny_service.counts("temporal")
        with tiny_service.client() as client:
            prompt = "You are a teacher whom nobody else asks for. " * 3
            answers.append(respond(client, wav(np.zeros(1920)), text_prompt=prompt, max_steps=1, seed=3))
        tiny_service.wait_until_free()
        done = tiny_service.counts("temporal") - before
        assert done.executions == done.inferences
        executions.append(done.executions)
    assert executions == [5, 3]
    assert answers[0].same_as(answers[1])


def prompt_of(manifest: Manifest, text: int) -> PromptPrefix:
    """A voice and so many text tokens, which no other test uses."""
    tokens = np.random.default_rng(text).integers(4, manifest.text_card, text)
    return prefix_of_preset(VoiceRegistry(manifest).require("NATF1").preset, tokens.tolist(), manifest)


async def at_once() -> None:
    """No batch runs."""


async def begin(backend: TritonBackend, slot: int, prefix: PromptPrefix) -> Prefilled:
    await backend.open(slot)
    return await backend.prefill(slot, prefix, sampler(prefix.length), GREEDY, at_once)


async def end(backend: TritonBackend, slots: int) -> None:
    for slot in range(slots):
        await backend.release(slot)
    await backend.close()


@pytest.fixture
def manifest(tiny_models) -> Manifest:
    return Manifest.load(tiny_models)


def test_prefilled_and_stepped_prompts_lead_to_the_same_tokens(tiny_service: Service, manifest: Manifest):
    """Hidden states agree to rounding, greedy text and codes exactly, right after the prompt."""
    whole = prompt_of(manifest, 40)
    given = len(whole.embeddings)
    first = PromptPrefix(whole.embeddings, whole.steps[:1], whole.fixed)

    async def both() -> None:
        backend = TritonBackend(tiny_service.triton.http_url, manifest)
        try:
            prefilled = (await begin(backend, 0, whole)).output
            stepped = (await begin(backend, 1, first)).output
            for position, step in enumerate(whole.steps[1:], given + 2):
                stepped = await backend.step(np.array([1]), step[None], sampler(position), GREEDY)
            np.testing.assert_allclose(prefilled.hidden, stepped.hidden, atol=1e-5)
            assert prefilled.text_tokens.tolist() == stepped.text_tokens.tolist()
            both = TemporalOutput(
                np.concatenate([prefilled.hidden, stepped.hidden]),
                np.concatenate([prefilled.text_tokens, stepped.text_tokens]),
            )
            codes = await backend.depformer(both, np.repeat(sampler(whole.length), 2, axis=0), np.repeat(GREEDY, 2, 0))
            np.testing.assert_array_equal(codes[0], codes[1])
        finally:
            await end(backend, 2)

    asyncio.run(both())


def test_a_conversation_does_not_depend_on_how_its_prompt_was_fed(tiny_service: Service, manifest: Manifest):
    """In one chunk, copied from the cache, or in many chunks while others talk: the same to the last bit."""
    whole = prompt_of(manifest, 200)

    async def hidden() -> tuple[list[NDArray[np.float32]], int]:
        backend = TritonBackend(tiny_service.triton.http_url, manifest)
        backend.pacer = ChunkPacer(0.0)
        try:
            alone, copied = [(await begin(backend, slot, whole)).output.hidden for slot in range(2)]
            # Two prompts that leave no room for the first one in the cache.
            for text in (240, 241):
                await begin(backend, 2, prompt_of(manifest, text))
                await backend.release(2)
            await begin(backend, 2, prompt_of(manifest, 5))
            before = tiny_service.counts("temporal")
            in_chunks = (await begin(backend, 3, whole)).output.hidden
            return [alone, copied, in_chunks], (tiny_service.counts("temporal") - before).executions
        finally:
            await end(backend, 4)

    (alone, copied, in_chunks), executions = asyncio.run(hidden())
    assert executions > 200 / MIN_STEPS
    np.testing.assert_array_equal(alone, copied)
    np.testing.assert_array_equal(alone, in_chunks)


def test_between_two_chunks_of_a_prefill_a_live_session_makes_its_step(tiny_service: Service, manifest: Manifest):
    """A step waits for the chunk that runs when it comes; two answers at once may look like one more."""

    async def chunks_during_steps() -> tuple[list[int], int]:
        backend = TritonBackend(tiny_service.triton.http_url, manifest)
        backend.pacer = ChunkPacer(0.0)
        try:
            await begin(backend, 0, prompt_of(manifest, 5))
            feeding = asyncio.create_task(begin(backend, 1, prompt_of(manifest, 280)))
            passed, position = [], 0
            while not feeding.done():
                before = backend.pacer.chunks
                await backend.step(np.array([0]), np.zeros((1, 17), np.int64), sampler(position), GREEDY)
                passed.append(backend.pacer.chunks - before)
            await feeding
            return passed, backend.pacer.chunks
        finally:
            await end(backend, 2)

    passed, chunks = asyncio.run(chunks_during_steps())
    assert chunks > 280 / MIN_STEPS
    assert max(passed) <= 2
    assert len(passed) >= 0.9 * chunks


def test_of_many_conversations_that_start_alike_at_once_one_computes(tiny_service: Service, manifest: Manifest):
    whole = prompt_of(manifest, 150)

    async def all_at_once() -> list[Prefilled]:
        backend = TritonBackend(tiny_service.triton.http_url, manifest)
        try:
            return await asyncio.gather(*(begin(backend, slot, whole) for slot in range(8)))
        finally:
            await end(backend, 8)

    begun = asyncio.run(all_at_once())
    assert sorted(each.cached for each in begun) == [0] + 7 * [whole.length - 1]
    assert len({each.output.hidden.tobytes() for each in begun}) == 1
