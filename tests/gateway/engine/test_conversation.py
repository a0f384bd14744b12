"""The frame loop on the fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from gateway.engine.cohort import Cohort
from gateway.engine.conversation import Conversation
from gateway.engine.fake import FakeEngine
from gateway.errors import EngineUnavailable
from gateway.manifest import Manifest
from gateway.session.persona import SILENCE
from gateway.voices.registry import VoiceRegistry

Converse = Callable[..., Conversation]
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 1920)).astype(np.float32)


async def talk(conversation: Conversation, frames: np.ndarray = NOISE) -> list[tuple[int, list[int], bytes]]:
    said = [await conversation.start()] + [await conversation.hear(pcm) for pcm in frames]
    return [(frame.text_token, frame.codes.tolist(), frame.pcm.tobytes()) for frame in said]


async def test_frame_zero_is_the_forced_silence(converse: Converse):
    frame = await converse().start()
    assert (frame.index, frame.text_token, frame.text) == (0, 3, "")
    assert np.array_equal(frame.codes, SILENCE)
    assert frame.heard is None
    assert frame.pcm.shape == (1920,)


async def test_each_user_frame_brings_the_next_agent_frame(converse: Converse):
    conversation = converse()
    await conversation.start()
    frames = [await conversation.hear(pcm) for pcm in NOISE]
    assert [frame.index for frame in frames] == [1, 2, 3, 4, 5, 6]
    assert all(frame.codes.shape == (8,) and frame.heard.shape == (8,) for frame in frames)


async def test_the_prompt_goes_in_with_one_call(converse: Converse, engine: FakeEngine, manifest: Manifest):
    await converse(text="").start()
    ((columns, embeddings),) = engine.prefills
    assert np.array_equal(embeddings, VoiceRegistry(manifest).require("NATF0").preset.embeddings)
    assert columns.shape == (1 + 12, 17)
    assert columns.min() >= 0


async def test_the_prompt_waits_for_the_frame_that_others_share(converse: Converse):
    cohort = Cohort()
    async with cohort.frame():
        starting = asyncio.create_task(converse(cohort=cohort).start())
        await asyncio.sleep(0.01)
        assert not starting.done()
    assert (await asyncio.wait_for(starting, 0.5)).index == 0


async def test_who_is_live_goes_beside_a_frame_that_has_given_way_and_a_recording_does_not(converse: Converse):
    cohort = Cohort()
    cohort._tail = 1.0
    async with cohort.frame(live=False) as shared:
        shared.give_way()
        for live, answered in ((False, False), (True, True)):
            conversation = converse(cohort=cohort)
            await conversation.start()
            hearing = asyncio.create_task(conversation.hear(NOISE[0], live=live))
            await asyncio.sleep(0.05)
            assert hearing.done() == answered
            hearing.cancel()
            await asyncio.wait([hearing])


async def test_columns_that_are_there_already_are_told_apart(converse: Converse):
    told: list[tuple[int, int]] = []
    for text in ("", "", "You are Bea."):
        await converse(text=text, prefilled=lambda fed, cached: told.append((fed, cached))).start()
    length = 5 - 1 + 1 + 12
    assert told[:2] == [(length, 0), (1, length - 1)]
    assert told[2][0] > length
    assert told[2][1] == 0


async def test_every_draw_is_for_the_column_after_the_last_one_fed(converse: Converse, engine: FakeEngine):
    conversation = converse(text="", seed=9)
    await talk(conversation, NOISE[:2])
    first = 5 + 12
    positions = [(kind, draw.position) for kind, draw in engine.draws]
    assert positions == [(kind, first + step) for step in range(3) for kind in ("text", "audio")]
    assert {draw.seed for _, draw in engine.draws} == {9}


async def test_the_same_seed_and_audio_give_the_same_answer(converse: Converse):
    assert await talk(converse(seed=4)) == await talk(converse(seed=4))


@pytest.mark.parametrize("other", [{"seed": 5}, {"text": "You are Bea."}])
async def test_seed_and_persona_change_the_answer(converse: Converse, other: dict[str, object]):
    plain, changed = await talk(converse(seed=4)), await talk(converse(**{"seed": 4, **other}))
    assert plain[0] == changed[0]
    assert plain[2:] != changed[2:]


async def test_the_first_frame_answers_to_the_prompt_alone_and_later_ones_to_the_user(converse: Converse):
    loud = NOISE.copy()
    loud[3] *= 0.5
    plain, changed = await talk(converse()), await talk(converse(), loud)
    assert plain[:4] == changed[:4]
    assert plain[4] != changed[4]


async def test_stage_times_add_up_to_no_more_than_the_frame(converse: Converse, engine: FakeEngine):
    engine.delay = 0.002
    conversation = converse()
    await conversation.start()
    frame = await conversation.hear(NOISE[0])
    stages = (frame.stages.encode, frame.stages.temporal, frame.stages.depformer, frame.stages.decode)
    assert min(stages) >= 0.0015
    assert sum(stages) <= frame.seconds


async def test_an_engine_that_fails_leaves_the_conversation_closable_once(converse: Converse, engine: FakeEngine):
    conversation = converse()
    await conversation.start()
    engine.down = True
    with pytest.raises(EngineUnavailable):
        await conversation.hear(NOISE[0])
    await conversation.close()
    await conversation.close()
    assert (engine.opened, engine.closed) == (1, 1)
