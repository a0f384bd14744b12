"""Gap policies: when the client's audio stops, wait for more or insert silence."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.engine.fake import FakeBackend
from gateway.session.runtime import Runtime
from tests.gateway.session.live.conftest import (
    FRAME,
    FRAME_S,
    Connect,
    JumpingPolicy,
    metric,
    noise,
    now,
    offline,
)

# The replacement in later versions of pytest-asyncio applies to whole sessions.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Hours take milliseconds."""
    return JumpingPolicy()


async def test_wait_waits(connect: Connect, runtime: Runtime) -> None:
    pcm = noise(6)
    async with connect(on_gap="wait") as client:
        await client.stream(pcm[: 3 * FRAME])
        await asyncio.sleep(10)
        assert len(client.answers) == 4
        await client.stream(pcm[3 * FRAME :])
        await client.end_audio()
        ended = await client.wait_ended()
    assert ended.summary.dropped_frames == 0
    assert client.tokens == await offline(runtime, pcm, 7)


async def test_a_long_burst_after_a_pause_is_used_completely(connect: Connect, runtime: Runtime) -> None:
    """Scripts send whole sentences and wait for each answer."""
    pcm = noise(2 * 37)
    async with connect(on_gap="wait") as client:
        await client.wait_ready()
        await client.put(pcm[: 37 * FRAME])
        await asyncio.sleep(6)
        await client.put(pcm[37 * FRAME :])
        await client.end_audio()
        ended = await client.wait_ended()
    assert ended.summary.dropped_frames == metric(runtime, "dropped_frames_total") == 0
    assert client.tokens == await offline(runtime, pcm, 75)


async def test_silence_continues_in_real_time(connect: Connect, runtime: Runtime) -> None:
    pcm = noise(3)
    async with connect(on_gap="silence") as client:
        await client.wait_ready()
        await client.stream(pcm)
        await asyncio.sleep(10)
        frames = len(client.answers)
        assert frames == pytest.approx(10.24 / FRAME_S, abs=3)
        assert metric(runtime, "gap_frames_total") == frames - 4
    received = np.concatenate([pcm, np.zeros((frames - 4) * FRAME, np.float32)])
    assert client.tokens[:frames] == await offline(runtime, received, frames)


@pytest.mark.parametrize("stall", [0.5, 1.6, 5.0])
async def test_audio_after_its_replacement_by_silence_is_dropped(
    connect: Connect, runtime: Runtime, engine: FakeBackend, stall: float
) -> None:
    """The network stalls three times and then delivers all audio at once: the session stays in real time."""
    engine.delay = 0.012
    network: asyncio.Queue[NDArray[np.float32]] = asyncio.Queue()
    flows = asyncio.Event()
    flows.set()

    async def send() -> None:
        while True:
            await asyncio.sleep(FRAME_S)
            network.put_nowait(noise(1))

    async with connect(on_gap="silence") as client:

        async def carry() -> None:
            while True:
                pcm = await network.get()
                await flows.wait()
                await client.put(pcm)

        await client.wait_ready()
        tasks = [asyncio.create_task(send()), asyncio.create_task(carry())]
        for _ in range(3):
            await asyncio.sleep(25 * FRAME_S)
            flows.clear()
            await asyncio.sleep(stall)
            flows.set()
        await asyncio.sleep(25 * FRAME_S)
        passed = (now() - client.ready_at) / FRAME_S
        received = len(client.answers) - 1
        last = client.answers[-1]
        for task in tasks:
            task.cancel()
    assert passed - 1 <= received <= passed + 1
    assert (network.qsize(), last.queued) == (0, 0)
    silence, dropped = metric(runtime, "gap_frames_total"), metric(runtime, "dropped_frames_total")
    assert silence == pytest.approx(3 * stall / FRAME_S, abs=6)
    assert silence - 1 <= dropped == client.ended.summary.dropped_frames <= silence


async def test_a_client_that_pauses_and_continues_in_time_loses_nothing(connect: Connect) -> None:
    wobble = np.random.default_rng(3).uniform(-0.03, 0.03, 100).tolist()
    async with connect(on_gap="silence") as client:
        await client.wait_ready()
        for pause in (0.3, 2.05, 10.0):
            await client.stream(noise(20))
            await asyncio.sleep(pause)
            began = now()
            for u in range(100):
                await asyncio.sleep(began + u * FRAME_S + wobble[u] - now())
                await client.put(noise(1))
            await asyncio.sleep(2 * FRAME_S)
        await client.end_audio()
        ended = await client.wait_ended()
    assert ended.summary.dropped_frames == 0


async def test_a_slow_server_inserts_no_silence(connect: Connect, runtime: Runtime, engine: FakeBackend) -> None:
    """Dropped frames count as time that has passed."""
    async with connect(on_gap="silence") as client:
        await client.wait_ready()
        await client.stream(noise(10))
        await asyncio.sleep(3)
        silence = metric(runtime, "gap_frames_total")
        engine.delay = 0.05
        await client.stream(noise(100))
        engine.delay = 0.01
        await client.stream(noise(50))
        await client.end_audio()
        ended = await client.wait_ended()
    assert ended.summary.dropped_frames > 40
    assert metric(runtime, "gap_frames_total") == silence > 30


async def test_audio_from_before_ready_neither_makes_nor_delays_a_gap(
    connect: Connect, runtime: Runtime, engine: FakeBackend
) -> None:
    engine.delay = 1.0
    async with connect(on_gap="silence") as client:
        talking = asyncio.create_task(client.stream(noise(100)))
        await client.wait_ready()
        engine.delay = 0.01
        await talking
        assert metric(runtime, "gap_frames_total") == 0
        await asyncio.sleep(1)
        assert metric(runtime, "gap_frames_total") == pytest.approx(1 / FRAME_S, abs=2)


async def test_audio_in_time_is_never_replaced_by_silence(connect: Connect, runtime: Runtime) -> None:
    pcm = noise(50)
    async with connect(on_gap="silence") as client:
        await client.wait_ready()
        await client.stream(pcm)
        await client.end_audio()
        await client.wait_ended()
    assert metric(runtime, "gap_frames_total") == 0
    assert client.tokens == await offline(runtime, pcm, 51)
