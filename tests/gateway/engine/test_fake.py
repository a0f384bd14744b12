"""The fake backend notices what the tests on it must notice."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.engine.backend import Floats, Prefilled, TemporalOutput, Tokens
from gateway.engine.fake import FakeBackend
from gateway.engine.prefix import PromptPrefix

SAMPLER, TEMPERATURE = np.array([[1, 3, 25]]), np.array([[0.7]], np.float32)
LOUD, SOFT = np.full((1, 1920), 0.5, np.float32), np.full((1, 1920), 0.1, np.float32)
STEPS = np.arange(4 * 17).reshape(4, 17)


async def encode(engine: FakeBackend, slot: int, pcm: Floats) -> list[int]:
    return (await engine.encode(np.array([slot]), pcm))[0].tolist()


async def step(engine: FakeBackend, slot: int, columns: Tokens) -> TemporalOutput:
    return await engine.step(np.array([slot]), columns[None], SAMPLER, TEMPERATURE)


async def prefill(engine: FakeBackend, slot: int, steps: Tokens) -> Prefilled:
    async def wait() -> None: ...

    prefix = PromptPrefix(np.zeros((0, 32), np.float32), steps, np.full(17, -1))
    return await engine.prefill(slot, prefix, SAMPLER, TEMPERATURE, wait)


@pytest.fixture
async def engine(engine: FakeBackend) -> FakeBackend:
    for slot in range(2):
        await engine.open(slot)
    return engine


async def test_the_order_of_frames_matters(engine: FakeBackend):
    await encode(engine, 0, LOUD)
    await encode(engine, 1, SOFT)
    assert await encode(engine, 0, SOFT) != await encode(engine, 1, LOUD)


async def test_a_batch_gives_each_slot_what_it_gets_alone(engine: FakeBackend):
    both = await engine.encode(np.array([1, 0]), np.concatenate([SOFT, LOUD]))
    for slot, pcm, codes in ((1, SOFT, both[0]), (0, LOUD, both[1])):
        await engine.open(slot)
        assert await encode(engine, slot, pcm) == codes.tolist()


async def test_a_prefill_is_its_steps_fed_one_by_one(engine: FakeBackend):
    whole = (await prefill(engine, 0, STEPS)).output
    for tokens in STEPS:
        stepped = await step(engine, 1, tokens)
    assert (whole.text_tokens.tolist(), whole.hidden.tolist()) == (
        stepped.text_tokens.tolist(),
        stepped.hidden.tolist(),
    )


async def test_a_prompt_is_cached_once_it_was_fed(engine: FakeBackend):
    cached = [(await prefill(engine, 0, steps)).cached for steps in (STEPS, STEPS, STEPS[1:])]
    assert cached == [0, 3, 0]


async def test_a_step_of_another_conversation_is_noticed(engine: FakeBackend):
    await step(engine, 1, STEPS[0])
    first, second = await step(engine, 0, STEPS[1]), await step(engine, 1, STEPS[1])
    assert first.text_tokens.tolist() != second.text_tokens.tolist()


async def test_a_released_slot_cannot_be_used(engine: FakeBackend):
    await engine.release(0)
    with pytest.raises(KeyError):
        await encode(engine, 0, LOUD)
