"""Conversations on the fake backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from gateway.engine.backend import Floats, Tokens
from gateway.engine.conversation import Conversation
from gateway.engine.fake import FakeBackend
from gateway.errors import EngineError, EngineUnavailable
from gateway.manifest import Manifest
from gateway.session.persona import SILENCE
from gateway.voices.registry import VoiceRegistry

Converse = Callable[..., Conversation]
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 1920)).astype(np.float32)


async def talk(conversation: Conversation, frames: np.ndarray = NOISE) -> list[tuple[int, list[int], bytes]]:
    agent = [await conversation.start()] + [await conversation.step(pcm) for pcm in frames]
    return [(frame.text_token, frame.codes.tolist(), frame.pcm.tobytes()) for frame in agent]


async def test_frame_zero_is_the_forced_silence(converse: Converse):
    frame = await converse().start()
    assert (frame.index, frame.text_token, frame.text) == (0, 3, "")
    assert np.array_equal(frame.codes, SILENCE)
    assert frame.user_codes is None
    assert frame.pcm.shape == (1920,)


async def test_each_user_frame_gives_the_next_agent_frame(converse: Converse):
    conversation = converse()
    await conversation.start()
    frames = [await conversation.step(pcm) for pcm in NOISE]
    assert [frame.index for frame in frames] == [1, 2, 3, 4, 5, 6]
    assert all(frame.codes.shape == (8,) and frame.user_codes.shape == (8,) for frame in frames)


async def test_the_prompt_is_fed_with_one_call(converse: Converse, engine: FakeBackend, manifest: Manifest):
    await converse(text="").start()
    (prefix,) = engine.prefills
    assert np.array_equal(prefix.embeddings, VoiceRegistry(manifest).require("NATF0").preset.embeddings)
    assert prefix.steps.shape == (1 + 12, 17)
    assert prefix.steps.min() >= 0


async def test_the_observer_gets_computed_and_cached_steps(converse: Converse):
    class Observed:
        def __init__(self) -> None:
            self.steps: list[tuple[int, int]] = []
            self.begun = self.first = 0

        def starting(self) -> None:
            self.begun += 1

        def started(self, fed: int, cached: int) -> None:
            self.steps.append((fed, cached))

        def first_audio(self) -> None:
            self.first += 1

    observed = Observed()
    for text in ("", "", "You are Bea."):
        conversation = converse(text=text)
        conversation.observer = observed
        await conversation.start()
    length = 5 - 1 + 1 + 12
    assert observed.steps[:2] == [(length, 0), (1, length - 1)]
    assert observed.steps[2][0] > length
    assert observed.steps[2][1] == 0
    assert (observed.begun, observed.first) == (3, 0)
    for _ in range(3):
        await conversation.step(NOISE[0])
    assert observed.first == 1


async def test_each_sampler_is_for_the_step_after_the_last_one_fed(converse: Converse, engine: FakeBackend):
    conversation = converse(text="", seed=9)
    await talk(conversation, NOISE[:2])
    first = 5 + 12
    positions = [(stream, sampler.position) for stream, sampler in engine.samplers]
    assert positions == [(stream, first + step) for step in range(3) for stream in ("text", "audio")]
    assert {sampler.seed for _, sampler in engine.samplers} == {9}


async def test_the_same_seed_and_audio_give_the_same_answer(converse: Converse):
    assert await talk(converse(seed=4)) == await talk(converse(seed=4))


@pytest.mark.parametrize("other", [{"seed": 5}, {"text": "You are Bea."}])
async def test_seed_and_persona_change_the_answer(converse: Converse, other: dict[str, object]):
    plain, changed = await talk(converse(seed=4)), await talk(converse(**{"seed": 4, **other}))
    assert plain[0] == changed[0]
    assert plain[2:] != changed[2:]


async def test_the_first_frame_answers_the_prompt_alone_and_later_ones_the_user(converse: Converse):
    loud = NOISE.copy()
    loud[3] *= 0.5
    plain, changed = await talk(converse()), await talk(converse(), loud)
    assert plain[:4] == changed[:4]
    assert plain[4] != changed[4]


async def test_a_resumed_conversation_answers_as_if_it_had_not_paused(converse: Converse):
    plain = await talk(converse())
    conversation = converse()
    await talk(conversation, NOISE[:2])
    await conversation.encode(NOISE[2])
    frames = [await conversation.resume()] + [await conversation.step(pcm) for pcm in NOISE[3:]]
    assert [(f.text_token, f.codes.tolist(), f.pcm.tobytes()) for f in frames] == plain[3:]


async def test_there_is_nothing_to_resume_after_an_answered_frame(converse: Converse):
    conversation = converse()
    await talk(conversation, NOISE[:2])
    with pytest.raises(RuntimeError, match="expected a user frame"):
        await conversation.resume()


async def test_stage_times_add_up_to_no_more_than_the_frame(converse: Converse, engine: FakeBackend):
    engine.delay = 0.002
    conversation = converse()
    await conversation.start()
    frame = await conversation.step(NOISE[0])
    stages = (frame.stages.encode, frame.stages.temporal, frame.stages.depformer, frame.stages.decode)
    assert min(stages) >= 0.0015
    assert sum(stages) <= frame.seconds
    assert conversation.stage_seconds.tolist() == [*stages, frame.seconds]


async def test_a_conversation_whose_backend_fails_can_be_closed_once(converse: Converse, engine: FakeBackend):
    conversation = converse()
    await conversation.start()
    engine.down = True
    with pytest.raises(EngineUnavailable):
        await conversation.step(NOISE[0])
    await conversation.close()
    await conversation.close()
    assert (engine.opened, engine.closed) == (1, 1)


async def test_a_closed_conversation_takes_no_frame(converse: Converse):
    conversation = converse()
    await conversation.start()
    await conversation.close()
    with pytest.raises(RuntimeError, match="not closed"):
        await conversation.step(NOISE[0])


async def test_a_closed_conversation_frees_its_slot(converse: Converse):
    first = converse()
    slot = first.slot
    await first.start()
    await first.close()
    second = converse()
    assert second.slot == slot
    assert await talk(second) == await talk(converse())


async def test_a_frame_under_way_is_finished_before_the_slot_is_free(converse: Converse, engine: FakeBackend):
    conversation = converse()
    await conversation.start()
    engine.delay = 0.02
    step = asyncio.create_task(conversation.step(NOISE[0]))
    await asyncio.sleep(0.01)
    step.cancel()
    engine.calls.clear()
    await conversation.close()
    assert [stage for stage, _ in engine.calls] == ["step", "depformer", "decode"]
    assert engine.closed == 1


async def test_a_start_that_is_cancelled_at_once_leaves_nothing_open(converse: Converse, engine: FakeBackend):
    conversation = converse()
    starting = asyncio.create_task(conversation.start())
    await asyncio.sleep(0)
    starting.cancel()
    await conversation.close()
    await asyncio.sleep(0.01)
    assert engine.opened == engine.closed == 1


async def test_a_start_whose_first_frame_is_rejected_fails_with_the_reason(
    converse: Converse, engine: FakeBackend, monkeypatch: pytest.MonkeyPatch
):
    conversation = converse()
    decode = engine.decode

    async def rejecting(slots: Tokens, codes: Tokens) -> Floats:
        engine.reject = {conversation.slot}
        return await decode(slots, codes)

    monkeypatch.setattr(engine, "decode", rejecting)
    with pytest.raises(EngineError, match="rejected"):
        await conversation.start()
