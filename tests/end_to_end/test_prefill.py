"""A prompt is prefilled in large pieces, once: a persona's next conversation begins with what the first one left."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from gateway.engine.pace import LEAST, Pace

from gateway.engine.backend import Prefilled, TemporalOutput
from gateway.engine.sampling import SamplingParams
from gateway.engine.triton.backend import TritonEngine, TritonSession
from gateway.manifest import Manifest
from gateway.session.persona import prefix_of_preset
from gateway.voices.registry import VoiceRegistry
from tests.end_to_end.conftest import Service, respond, wav

DRAW = SamplingParams(audio_temperature=0.0, audio_top_k=1, text_temperature=0.0, text_top_k=1, seed=1)


def test_a_persona_is_prefilled_in_one_execution_and_then_not_at_all(tiny_service: Service):
    """Besides the execution that asks for the prefix, that of the column behind it, and the END."""
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
    assert executions == [4, 2]
    assert answers[0].same_as(answers[1])


def prefix(manifest: Manifest, text: int):
    """Of a voice and so many text tokens, which nobody else has."""
    tokens = np.random.default_rng(text).integers(4, manifest.text_card, text)
    return prefix_of_preset(VoiceRegistry(manifest).require("NATF1").preset, tokens.tolist(), manifest)


async def begin(session: TritonSession, whole) -> TemporalOutput:
    return (await session.prefill(whole.columns, whole.embeddings, DRAW.text(whole.length))).thought


@pytest.fixture
def manifest(tiny_models) -> Manifest:
    return Manifest.load(tiny_models)


def test_prefilled_and_stepped_prompts_lead_to_the_same_tokens(tiny_service: Service, manifest: Manifest):
    """Hidden states agree to rounding, greedy text and codes exactly, right after the prompt."""
    whole = prefix(manifest, 40)

    async def both() -> None:
        engine = TritonEngine(tiny_service.triton.http_url, manifest)
        at_once, stepped = engine.open(), engine.open()
        try:
            prefilled = await begin(at_once, whole)
            given = len(whole.embeddings)
            thought = (await stepped.prefill(whole.columns[:1], whole.embeddings, DRAW.text(given + 1))).thought
            for position, column in enumerate(whole.columns[1:], given + 2):
                thought = await stepped.step(column, DRAW.text(position))
            np.testing.assert_allclose(prefilled.hidden, thought.hidden, atol=1e-5)
            assert prefilled.text_token == thought.text_token
            draws = DRAW.audio(whole.length)
            codes = await at_once.depformer(prefilled, draws)
            np.testing.assert_array_equal(codes, await stepped.depformer(thought, draws))
        finally:
            await at_once.close()
            await stepped.close()
            await engine.close()

    asyncio.run(both())


async def crowd_out(engine: TritonEngine, manifest: Manifest) -> None:
    """Begin with prefixes that leave no room for another one of 200 columns."""
    for text in (240, 241):
        session = engine.open()
        await begin(session, prefix(manifest, text))
        await session.close()


def test_a_conversation_does_not_depend_on_how_its_prefix_came(tiny_service: Service, manifest: Manifest):
    """In one piece, copied, or in many pieces while somebody talks: the same to the last bit."""
    whole = prefix(manifest, 200)

    async def hidden() -> tuple[list[np.ndarray], int]:
        engine = TritonEngine(tiny_service.triton.http_url, manifest)
        engine.pace = Pace(0.0)
        sessions = [engine.open() for _ in range(4)]
        try:
            alone, copied = [(await begin(session, whole)).hidden for session in sessions[:2]]
            await crowd_out(engine, manifest)
            await begin(sessions[2], prefix(manifest, 5))
            before = tiny_service.counts("temporal")
            cut = (await begin(sessions[3], whole)).hidden
            return [alone, copied, cut], (tiny_service.counts("temporal") - before).executions
        finally:
            for session in sessions:
                await session.close()
            await engine.close()

    (alone, copied, cut), executions = asyncio.run(hidden())
    assert executions > 200 / LEAST
    np.testing.assert_array_equal(alone, copied)
    np.testing.assert_array_equal(alone, cut)


def test_between_two_pieces_of_a_prefill_a_live_call_makes_its_step(tiny_service: Service, manifest: Manifest):
    """A step waits for the piece that is under way when it comes; two answers at once may look like one more."""

    async def pieces_during_steps() -> tuple[list[int], int]:
        engine = TritonEngine(tiny_service.triton.http_url, manifest)
        engine.pace = Pace(0.0)
        talker, newcomer = engine.open(), engine.open()
        try:
            await begin(talker, prefix(manifest, 5))
            feeding = asyncio.create_task(begin(newcomer, prefix(manifest, 280)))
            passed, position = [], 0
            while not feeding.done():
                before = engine.pace.pieces
                await talker.step(np.zeros(17, np.int64), DRAW.text(position))
                passed.append(engine.pace.pieces - before)
            await feeding
            return passed, engine.pace.pieces
        finally:
            await talker.close()
            await newcomer.close()
            await engine.close()

    passed, pieces = asyncio.run(pieces_during_steps())
    assert pieces > 280 / LEAST
    assert max(passed) <= 2
    assert len(passed) >= 0.9 * pieces


def test_of_many_who_begin_alike_at_once_one_computes(tiny_service: Service, manifest: Manifest):
    whole = prefix(manifest, 150)

    async def all_at_once() -> list[Prefilled]:
        engine = TritonEngine(tiny_service.triton.http_url, manifest)
        sessions = [engine.open() for _ in range(8)]
        draw = DRAW.text(whole.length)
        try:
            runtime = (session.prefill(whole.columns, whole.embeddings, draw) for session in sessions)
            return await asyncio.gather(*runtime)
        finally:
            for session in sessions:
                await session.close()
            await engine.close()

    begun = asyncio.run(all_at_once())
    assert sorted(each.cached for each in begun) == [0] + 7 * [whole.length - 1]
    assert len({each.thought.hidden.tobytes() for each in begun}) == 1
