"""Reported latency: from the completion of a user frame to its answer, however early the client's clock runs."""

from __future__ import annotations

import asyncio

import pytest

from gateway.engine.fake import FakeBackend
from gateway.session.runtime import Runtime
from tests.gateway.session.live.conftest import FRAME_S, Client, Connect, JumpingPolicy, metric, noise, now

# The replacement in later versions of pytest-asyncio applies to whole sessions.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Hours take milliseconds."""
    return JumpingPolicy()


async def stream(client: Client, frames: int, every: float = FRAME_S) -> list[float]:
    """Stream frames; return when each was complete."""
    complete_at = []
    for u in range(frames):
        complete_at.append(now())
        await client.put(noise(1, seed=u))
        await asyncio.sleep(every)
    return complete_at


def check(runtime: Runtime, client: Client, complete_at: list[float]) -> None:
    """Compare reported with observed latency."""
    reported = [event.latency for event in client.answers[1:]]
    observed = [at - max(done, client.ready_at) for at, done in zip(client.answered_at, complete_at, strict=True)]
    assert reported == pytest.approx(observed, abs=1e-3)
    late = sum(latency > FRAME_S for latency in reported)
    assert client.ended.summary.late_frames == metric(runtime, "late_frames_total") == late
    assert metric(runtime, "input_to_output_seconds_count") == len(reported)
    assert metric(runtime, "input_to_output_seconds_sum") == pytest.approx(sum(reported))


@pytest.mark.parametrize(("setup", "stage"), [(0.0, 0.012), (0.03, 0.021), (0.5, 0.012), (0.5, 0.021)])
async def test_a_microphone_that_starts_with_the_connection(
    connect: Connect, runtime: Runtime, engine: FakeBackend, setup: float, stage: float
) -> None:
    engine.delay = setup / 3
    async with connect() as client:
        streaming = asyncio.create_task(stream(client, 40))
        await client.wait_ready()
        engine.delay = stage
        complete_at = await streaming
        await client.end_audio()
        await client.wait_ended()
    check(runtime, client, complete_at)


async def test_audio_sent_during_a_long_prompt_delays_later_answers_only_briefly(
    connect: Connect, engine: FakeBackend
) -> None:
    engine.delay = 1.0
    async with connect() as client:
        streaming = asyncio.create_task(stream(client, 80))
        await client.wait_ready()
        engine.delay = 0.012
        complete_at = await streaming
        await client.end_audio()
        await client.wait_ended()
    last = client.answered_at[-1] - complete_at[-1]
    assert client.answers[-1].latency == pytest.approx(last, abs=1e-3)
    assert last == pytest.approx(4 * 0.012, abs=1e-3)


@pytest.mark.parametrize("since_ready", [0.0, 0.02, 0.07, 0.5])
async def test_a_first_frame_near_ready(
    connect: Connect, runtime: Runtime, engine: FakeBackend, since_ready: float
) -> None:
    engine.delay = 0.012
    async with connect() as client:
        await client.wait_ready()
        await asyncio.sleep(since_ready)
        complete_at = await stream(client, 20)
        await client.end_audio()
        await client.wait_ended()
    check(runtime, client, complete_at)


@pytest.mark.parametrize("every", [0.99 * FRAME_S, 1.01 * FRAME_S])
async def test_a_clock_that_runs_fast_or_slow(
    connect: Connect, runtime: Runtime, engine: FakeBackend, every: float
) -> None:
    engine.delay = 0.012
    async with connect() as client:
        await client.wait_ready()
        complete_at = await stream(client, 400, every)
        await client.end_audio()
        await client.wait_ended()
    check(runtime, client, complete_at)


@pytest.mark.parametrize("pause", [1.0, 10.0])
async def test_frames_that_wait_because_of_their_own_burst_are_not_late(
    connect: Connect, runtime: Runtime, engine: FakeBackend, pause: float
) -> None:
    engine.delay = 0.015
    async with connect() as client:
        await client.wait_ready()
        for _ in range(3):
            await client.put(noise(30))
            await asyncio.sleep(30 * FRAME_S + pause)
        await client.end_audio()
        ended = await client.wait_ended()
    assert ended.summary.frames == 91
    assert ended.summary.late_frames == metric(runtime, "late_frames_total") == 0
    assert max(event.latency for event in client.answers) < FRAME_S
