"""What latency is told: from a frame's being complete to its answer, however early the caller's clock runs."""

from __future__ import annotations

import asyncio

import pytest

from gateway.engine.fake import FakeEngine
from gateway.session.runtime import Runtime
from tests.gateway.session.live.conftest import FRAME_S, ConversationLease, LeapingPolicy, OnTheLine, metric, noise, now

# What comes instead in a later pytest-asyncio is for whole sessions.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Hours take milliseconds here."""
    return LeapingPolicy()


async def talk(line: OnTheLine, frames: int, every: float = FRAME_S) -> list[float]:
    """Speaks, frame by frame; when each was complete."""
    complete_at = []
    for u in range(frames):
        complete_at.append(now())
        await line.live.put(noise(1, seed=u))
        await asyncio.sleep(every)
    return complete_at


def check(runtime: Runtime, line: OnTheLine, complete_at: list[float]) -> None:
    """What was told against what was seen from outside."""
    told = [event.latency for event in line.spoken[1:]]
    seen = [at - max(done, line.ready_at) for at, done in zip(line.answered_at, complete_at, strict=True)]
    assert told == pytest.approx(seen, abs=1e-3)
    late = sum(latency > FRAME_S for latency in told)
    assert line.ended.summary.late_frames == metric(runtime, "late_frames_total") == late
    assert metric(runtime, "input_to_output_seconds_count") == len(told)
    assert metric(runtime, "input_to_output_seconds_sum") == pytest.approx(sum(told))


@pytest.mark.parametrize(("setup", "stage"), [(0.0, 0.012), (0.03, 0.021), (0.5, 0.012), (0.5, 0.021)])
async def test_a_microphone_that_runs_from_the_beginning(
    call: ConversationLease, runtime: Runtime, engine: FakeEngine, setup: float, stage: float
) -> None:
    engine.delay = setup / 3
    async with call() as line:
        talking = asyncio.create_task(talk(line, 40))
        await line.ready()
        engine.delay = stage
        complete_at = await talking
        line.live.hang_up()
        await line.over()
    check(runtime, line, complete_at)


async def test_who_spoke_all_through_a_long_prompt_is_soon_answered_at_once(
    call: ConversationLease, engine: FakeEngine
) -> None:
    engine.delay = 1.0
    async with call() as line:
        talking = asyncio.create_task(talk(line, 80))
        await line.ready()
        engine.delay = 0.012
        complete_at = await talking
        line.live.hang_up()
        await line.over()
    last = line.answered_at[-1] - complete_at[-1]
    assert line.spoken[-1].latency == pytest.approx(last, abs=1e-3)
    assert last == pytest.approx(4 * 0.012, abs=1e-3)


@pytest.mark.parametrize("since_ready", [0.0, 0.02, 0.07, 0.5])
async def test_a_first_frame_that_began_before_ready(
    call: ConversationLease, runtime: Runtime, engine: FakeEngine, since_ready: float
) -> None:
    engine.delay = 0.012
    async with call() as line:
        await line.ready()
        await asyncio.sleep(since_ready)
        complete_at = await talk(line, 20)
        line.live.hang_up()
        await line.over()
    check(runtime, line, complete_at)


@pytest.mark.parametrize("every", [0.99 * FRAME_S, 1.01 * FRAME_S])
async def test_a_clock_that_runs_fast_or_slow(
    call: ConversationLease, runtime: Runtime, engine: FakeEngine, every: float
) -> None:
    engine.delay = 0.012
    async with call() as line:
        await line.ready()
        complete_at = await talk(line, 400, every)
        line.live.hang_up()
        await line.over()
    check(runtime, line, complete_at)


@pytest.mark.parametrize("pause", [1.0, 10.0])
async def test_nobody_is_late_who_is_made_to_wait_by_their_own_burst(
    call: ConversationLease, runtime: Runtime, engine: FakeEngine, pause: float
) -> None:
    engine.delay = 0.015
    async with call() as line:
        await line.ready()
        for _ in range(3):
            await line.live.put(noise(30))
            await asyncio.sleep(30 * FRAME_S + pause)
        line.live.hang_up()
        ended = await line.over()
    assert ended.summary.frames == 91
    assert ended.summary.late_frames == metric(runtime, "late_frames_total") == 0
    assert max(event.latency for event in line.spoken) < FRAME_S
