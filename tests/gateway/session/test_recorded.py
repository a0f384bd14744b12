"""How long an answer is, and what it is fed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gateway.engine.conversation import AgentFrame, Conversation
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.session.recorded import RecordedResponse, split

Converse = Callable[..., Conversation]
PCM = np.random.default_rng(1).uniform(-0.5, 0.5, 1920 * 10 - 700).astype(np.float32)


async def run(reply: RecordedResponse) -> list[AgentFrame]:
    return [frame async for frame in reply.frames()]


def test_the_last_frame_is_padded_with_zeros():
    frames = split(PCM, 1920)
    assert frames.shape == (10, 1920)
    assert np.array_equal(frames.reshape(-1)[: len(PCM)], PCM)
    assert not frames[-1, -700:].any()


@pytest.mark.parametrize("steps", [1, 4, 10, 13])
async def test_max_steps_is_exact(converse: Converse, manifest: Manifest, steps: int):
    frames = await run(RecordedResponse(converse(), PCM, manifest, steps))
    assert [frame.index for frame in frames] == list(range(steps))


async def test_without_max_steps_an_agent_who_talks_gets_250_frames_more(converse: Converse, manifest: Manifest):
    assert len(await run(RecordedResponse(converse(), PCM, manifest, None))) == 10 + 250


async def test_without_max_steps_two_seconds_of_silence_after_the_user_end_it(
    converse: Converse, manifest: Manifest, engine: FakeBackend
):
    engine.mute = True
    assert len(await run(RecordedResponse(converse(), PCM, manifest, None))) == 10 + 25


async def test_silence_does_not_end_what_max_steps_asked_for(
    converse: Converse, manifest: Manifest, engine: FakeBackend
):
    engine.mute = True
    assert len(await run(RecordedResponse(converse(), PCM, manifest, 60))) == 60


async def test_silence_counts_from_the_last_word(converse: Converse, manifest: Manifest, engine: FakeBackend):
    engine.mute = True
    reply = RecordedResponse(converse(), PCM, manifest, None)
    count = 0
    async for frame in reply.frames():
        count += 1
        engine.mute = frame.index != 19  # frame 20 is loud, and the word drawn beside it belongs to frame 21
    assert count == 22 + 25


async def test_there_are_as_many_user_codes_as_frames_and_they_do_not_depend_on_the_agent(
    converse: Converse, manifest: Manifest
):
    short, long = (
        RecordedResponse(converse(seed=1), PCM, manifest, 6),
        RecordedResponse(converse(seed=2), PCM, manifest, 12),
    )
    await run(short)
    await run(long)
    assert len(short.user_codes) == 6
    assert np.array_equal(short.user_codes, long.user_codes[:6])


async def test_silence_is_fed_after_the_recording(converse: Converse, manifest: Manifest):
    padded = np.concatenate([PCM, np.zeros(700 + 3 * 1920, np.float32)])
    short, padded_reply = (
        RecordedResponse(converse(), PCM, manifest, 13),
        RecordedResponse(converse(), padded, manifest, 13),
    )
    agent, agent_padded = await run(short), await run(padded_reply)
    assert np.array_equal(short.user_codes, padded_reply.user_codes)
    assert [frame.codes.tolist() for frame in agent] == [frame.codes.tolist() for frame in agent_padded]
