"""When the caller's audio stops coming: waiting for more, or silence in its place."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.engine.fake import FakeEngine
from gateway.session.runtime import Runtime
from tests.gateway.session.live.conftest import (
    FRAME,
    FRAME_S,
    ConversationLease,
    LeapingPolicy,
    metric,
    noise,
    now,
    offline,
)

# What comes instead in a later pytest-asyncio is for whole sessions.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Hours take milliseconds here."""
    return LeapingPolicy()


async def test_wait_waits(call: ConversationLease, runtime: Runtime) -> None:
    pcm = noise(6)
    async with call(on_gap="wait") as line:
        await line.speak(pcm[: 3 * FRAME])
        await asyncio.sleep(10)
        assert len(line.spoken) == 4
        await line.speak(pcm[3 * FRAME :])
        line.live.hang_up()
        ended = await line.over()
    assert ended.summary.dropped_frames == 0
    assert line.tokens == await offline(runtime, pcm, 7)


async def test_a_long_burst_after_a_pause_is_heard_whole(call: ConversationLease, runtime: Runtime) -> None:
    """As a script says whole sentences and waits for the answer to each."""
    pcm = noise(2 * 37)
    async with call(on_gap="wait") as line:
        await line.ready()
        await line.live.put(pcm[: 37 * FRAME])
        await asyncio.sleep(6)
        await line.live.put(pcm[37 * FRAME :])
        line.live.hang_up()
        ended = await line.over()
    assert ended.summary.dropped_frames == metric(runtime, "dropped_frames_total") == 0
    assert line.tokens == await offline(runtime, pcm, 75)


async def test_silence_goes_on_in_real_time(call: ConversationLease, runtime: Runtime) -> None:
    pcm = noise(3)
    async with call(on_gap="silence") as line:
        await line.ready()
        await line.speak(pcm)
        await asyncio.sleep(10)
        frames = len(line.spoken)
        assert frames == pytest.approx(10.24 / FRAME_S, abs=3)
        assert metric(runtime, "gap_frames_total") == frames - 4
    heard = np.concatenate([pcm, np.zeros((frames - 4) * FRAME, np.float32)])
    assert line.tokens[:frames] == await offline(runtime, heard, frames)


@pytest.mark.parametrize("stall", [0.5, 1.6, 5.0])
async def test_what_comes_after_silence_in_its_place_is_dropped(
    call: ConversationLease, runtime: Runtime, engine: FakeEngine, stall: float
) -> None:
    """Three times the network stands still for a while and then gives all at once: the call stays in real time."""
    engine.delay = 0.012
    network: asyncio.Queue[NDArray[np.float32]] = asyncio.Queue()
    flows = asyncio.Event()
    flows.set()

    async def speak() -> None:
        while True:
            await asyncio.sleep(FRAME_S)
            network.put_nowait(noise(1))

    async with call(on_gap="silence") as line:

        async def carry() -> None:
            while True:
                pcm = await network.get()
                await flows.wait()
                await line.live.put(pcm)

        await line.ready()
        tasks = [asyncio.create_task(speak()), asyncio.create_task(carry())]
        for _ in range(3):
            await asyncio.sleep(25 * FRAME_S)
            flows.clear()
            await asyncio.sleep(stall)
            flows.set()
        await asyncio.sleep(25 * FRAME_S)
        passed = (now() - line.ready_at) / FRAME_S
        heard = len(line.spoken) - 1
        last = line.spoken[-1]
        for task in tasks:
            task.cancel()
    assert passed - 1 <= heard <= passed + 1
    assert (network.qsize(), last.queued) == (0, 0)
    silence, dropped = metric(runtime, "gap_frames_total"), metric(runtime, "dropped_frames_total")
    assert silence == pytest.approx(3 * stall / FRAME_S, abs=6)
    assert silence - 1 <= dropped == line.ended.summary.dropped_frames <= silence


async def test_who_pauses_and_goes_on_in_time_loses_nothing(call: ConversationLease) -> None:
    wobble = np.random.default_rng(3).uniform(-0.03, 0.03, 100).tolist()
    async with call(on_gap="silence") as line:
        await line.ready()
        for pause in (0.3, 2.05, 10.0):
            await line.speak(noise(20))
            await asyncio.sleep(pause)
            began = now()
            for u in range(100):
                await asyncio.sleep(began + u * FRAME_S + wobble[u] - now())
                await line.live.put(noise(1))
            await asyncio.sleep(2 * FRAME_S)
        line.live.hang_up()
        ended = await line.over()
    assert ended.summary.dropped_frames == 0


async def test_a_server_that_was_late_hears_no_silence_in_between(
    call: ConversationLease, runtime: Runtime, engine: FakeEngine
) -> None:
    """The time of what it dropped is over."""
    async with call(on_gap="silence") as line:
        await line.ready()
        await line.speak(noise(10))
        await asyncio.sleep(3)
        silence = metric(runtime, "gap_frames_total")
        engine.delay = 0.05
        await line.speak(noise(100))
        engine.delay = 0.01
        await line.speak(noise(50))
        line.live.hang_up()
        ended = await line.over()
    assert ended.summary.dropped_frames > 40
    assert metric(runtime, "gap_frames_total") == silence > 30


async def test_audio_from_before_ready_is_no_gap_and_puts_none_off(
    call: ConversationLease, runtime: Runtime, engine: FakeEngine
) -> None:
    engine.delay = 1.0
    async with call(on_gap="silence") as line:
        talking = asyncio.create_task(line.speak(noise(100)))
        await line.ready()
        engine.delay = 0.01
        await talking
        assert metric(runtime, "gap_frames_total") == 0
        await asyncio.sleep(1)
        assert metric(runtime, "gap_frames_total") == pytest.approx(1 / FRAME_S, abs=2)


async def test_silence_never_comes_in_place_of_audio_in_time(call: ConversationLease, runtime: Runtime) -> None:
    pcm = noise(50)
    async with call(on_gap="silence") as line:
        await line.ready()
        await line.speak(pcm)
        line.live.hang_up()
        await line.over()
    assert metric(runtime, "gap_frames_total") == 0
    assert line.tokens == await offline(runtime, pcm, 51)
