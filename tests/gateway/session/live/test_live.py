"""What is said in a live call, and when."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.engine.fake import FakeEngine
from gateway.session.events import AgentAudio, Ready, Reason
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


class TestWhatIsSaid:
    @pytest.mark.parametrize("size", [FRAME, 700, 5000])
    async def test_it_is_what_is_said_offline(self, call: ConversationLease, runtime: Runtime, size: int) -> None:
        pcm = noise(20.5)
        async with call() as line:
            for at in range(0, len(pcm), size):
                await line.live.put(pcm[at : at + size])
            line.live.hang_up()
            ended = await line.over()
        assert line.tokens == await offline(runtime, pcm, 22)
        assert [event.frame.index for event in line.spoken] == list(range(22))
        assert ended.reason is Reason.COMPLETED
        assert ended.summary.frames == 22
        assert ended.summary.seconds == pytest.approx(22 * FRAME_S)
        assert ended.summary.transcript == "".join(event.frame.text for event in line.spoken).strip()
        assert metric(runtime, "ended_total", reason="completed") == 2

    async def test_a_frame_is_answered_as_soon_as_it_is_there(self, call: ConversationLease) -> None:
        async with call() as line:
            await line.frames(1)
            for u in range(5):
                await line.live.put(noise(1, seed=u))
                began = now()
                await line.frames(u + 2)
                assert now() - began < FRAME_S / 2

    async def test_who_sends_ahead_is_not_answered_late(self, call: ConversationLease, runtime: Runtime) -> None:
        """A second sent at once is heard as fast as it can be: nothing is late that is done before it is due."""
        runtime.engine.delay = 0.01
        async with call() as line:
            await line.live.put(noise(12))
            line.live.hang_up()
            ended = await line.over()
        assert ended.summary.late_frames == metric(runtime, "late_frames_total") == 0
        assert max(event.latency for event in line.spoken) < FRAME_S

    async def test_ready_comes_first_and_says_who_is_there(self, call: ConversationLease, engine: FakeEngine) -> None:
        engine.delay = 1.0
        async with call() as line:
            await line.frames(1)
        ready, spoken = line.events[:2]
        assert isinstance(ready, Ready)
        assert isinstance(spoken, AgentAudio)
        assert (ready.conversation_id, ready.voice, ready.seed) == (line.live.id, "NATF0", 1)
        assert ready.setup_seconds == pytest.approx(3.0)
        assert (spoken.frame.index, spoken.latency) == (0, 0.0)

    async def test_audio_that_comes_before_ready_is_kept(
        self, call: ConversationLease, runtime: Runtime, engine: FakeEngine
    ) -> None:
        engine.delay = 0.05
        pcm = noise(8)
        async with call() as line:
            await line.live.put(pcm)
            assert not line.events
            line.live.hang_up()
            await line.over()
        engine.delay = 0
        assert line.tokens == await offline(runtime, pcm, 9)


class TestPace:
    async def test_who_sends_ahead_is_held_back(self, call: ConversationLease) -> None:
        """A minute at once: heard in about a minute, nothing lost."""
        async with call() as line:
            await line.ready()
            began = now()
            await line.live.put(noise(750))
            # All but what may wait, and what may be heard early.
            assert now() - began == pytest.approx((750 - 20) * FRAME_S, abs=3 * FRAME_S)
            line.live.hang_up()
            ended = await line.over()
        assert ended.summary.frames == 751
        assert ended.summary.dropped_frames == 0
        assert all(event.queued <= 10 for event in line.spoken)

    async def test_a_speed_of_zero_is_as_fast_as_it_goes(self, call: ConversationLease) -> None:
        async with call(speed=0) as line:
            await line.ready()
            began = now()
            await line.live.put(noise(750))
            line.live.hang_up()
            await line.over()
            assert now() - began < 1
        assert len(line.spoken) == 751

    @pytest.mark.parametrize("speed", [1, 2, 4])
    async def test_the_speed_is_a_multiple_of_real_time(self, call: ConversationLease, speed: int) -> None:
        async with call(speed=speed) as line:
            await line.ready()
            began = now()
            talk = asyncio.create_task(line.live.put(noise(750)))
            await asyncio.sleep(2)
            heard = len(line.spoken)
            await asyncio.sleep(4)
            assert len(line.spoken) - heard == pytest.approx(4 / FRAME_S * speed, abs=1)
            # All but what may be heard early.
            await line.frames(601)
            assert now() - began == pytest.approx(590 * FRAME_S / speed, abs=FRAME_S)
            talk.cancel()

    async def test_a_server_that_is_late_drops_the_oldest_and_says_so(
        self, call: ConversationLease, runtime: Runtime, engine: FakeEngine
    ) -> None:
        engine.delay = 0.05  # four of them for a frame: 200 ms
        async with call() as line:
            await line.frames(1)
            await line.speak(noise(100))
            counted = metric(runtime, "dropped_frames_total")
            line.live.hang_up()
            ended = await line.over()
        summary = ended.summary
        assert 40 <= summary.dropped_frames <= 60
        assert summary.frames + summary.dropped_frames == 101
        assert [event.dropped for event in line.spoken] == sorted(event.dropped for event in line.spoken)
        assert line.spoken[-1].dropped == summary.dropped_frames
        assert summary.late_frames == metric(runtime, "late_frames_total") == summary.frames - 1
        assert metric(runtime, "dropped_frames_total") == summary.dropped_frames
        assert counted == pytest.approx(summary.dropped_frames, abs=2)
        # It stays in the present: no frame is older than what may wait.
        assert max(event.latency for event in line.spoken) <= 11 * 0.2 + 0.01

    async def test_one_who_is_late_does_not_hold_up_the_others(self, call: ConversationLease) -> None:
        async with call() as late, call() as prompt:
            await late.ready()
            await prompt.speak(noise(20))
            assert len(prompt.spoken) == 21
            assert max(event.latency for event in prompt.spoken) < FRAME_S / 2
            assert len(late.spoken) == 1


async def test_many_at_once_each_hear_their_own(call: ConversationLease, runtime: Runtime) -> None:
    runtime.admission.slots = 20
    speech = [noise(10, seed=seed) for seed in range(20)]

    async def one(pcm: NDArray[np.float32]) -> list[list[int]]:
        async with call() as line:
            await line.speak(pcm)
            line.live.hang_up()
            await line.over()
        return line.tokens

    said = await asyncio.gather(*map(one, speech))
    for pcm, tokens in zip(speech, said, strict=True):
        assert tokens == await offline(runtime, pcm, 11)
