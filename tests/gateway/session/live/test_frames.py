"""The frames of a live session: their content, order and pace."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.engine.fake import FakeBackend
from gateway.session.events import AgentAudio, Ready, Reason
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


class TestContent:
    @pytest.mark.parametrize("size", [FRAME, 700, 5000])
    async def test_answers_equal_those_to_a_recording(self, connect: Connect, runtime: Runtime, size: int) -> None:
        pcm = noise(20.5)
        async with connect() as client:
            for at in range(0, len(pcm), size):
                await client.put(pcm[at : at + size])
            await client.end_audio()
            ended = await client.wait_ended()
        assert client.tokens == await offline(runtime, pcm, 22)
        assert [event.frame.index for event in client.answers] == list(range(22))
        assert ended.reason is Reason.COMPLETED
        assert ended.summary.frames == 22
        assert ended.summary.seconds == pytest.approx(22 * FRAME_S)
        assert ended.summary.transcript == "".join(event.frame.text for event in client.answers).strip()
        assert metric(runtime, "ended_total", reason="completed") == 2

    async def test_a_frame_is_answered_as_soon_as_it_is_complete(self, connect: Connect) -> None:
        async with connect() as client:
            await client.wait_frames(1)
            for u in range(5):
                await client.put(noise(1, seed=u))
                began = now()
                await client.wait_frames(u + 2)
                assert now() - began < FRAME_S / 2

    async def test_frames_sent_ahead_of_time_are_not_late(self, connect: Connect, runtime: Runtime) -> None:
        """A second of audio sent at once is processed as fast as possible, before the frames are due."""
        runtime.backend.delay = 0.01
        async with connect() as client:
            await client.put(noise(12))
            await client.end_audio()
            ended = await client.wait_ended()
        assert ended.summary.late_frames == metric(runtime, "late_frames_total") == 0
        assert max(event.latency for event in client.answers) < FRAME_S

    async def test_ready_comes_first(self, connect: Connect, engine: FakeBackend) -> None:
        engine.delay = 1.0
        async with connect() as client:
            await client.wait_frames(1)
        ready, spoken = client.events[:2]
        assert isinstance(ready, Ready)
        assert isinstance(spoken, AgentAudio)
        assert (ready.conversation_id, ready.voice, ready.seed) == (client.session.id, "NATF0", 1)
        assert ready.setup_seconds == pytest.approx(3.0)
        assert ready.prompt_steps == engine.prefills[0].length
        assert (spoken.frame.index, spoken.latency) == (0, 0.0)

    async def test_audio_from_before_ready_is_used(
        self, connect: Connect, runtime: Runtime, engine: FakeBackend
    ) -> None:
        engine.delay = 0.05
        pcm = noise(8)
        async with connect() as client:
            await client.put(pcm)
            assert not client.events
            await client.end_audio()
            await client.wait_ended()
        engine.delay = 0
        assert client.tokens == await offline(runtime, pcm, 9)


class TestPace:
    async def test_a_client_that_sends_ahead_is_slowed_down(self, connect: Connect) -> None:
        """A minute of audio sent at once is processed in about a minute, and none of it is lost."""
        async with connect() as client:
            await client.wait_ready()
            began = now()
            await client.put(noise(750))
            # All but what may wait, and what may be received early.
            assert now() - began == pytest.approx((750 - 20) * FRAME_S, abs=3 * FRAME_S)
            await client.end_audio()
            ended = await client.wait_ended()
        assert ended.summary.frames == 751
        assert ended.summary.dropped_frames == 0
        assert all(event.queued <= 10 for event in client.answers)

    async def test_a_speed_of_zero_is_no_limit(self, connect: Connect) -> None:
        async with connect(speed=0) as client:
            await client.wait_ready()
            began = now()
            await client.put(noise(750))
            await client.end_audio()
            await client.wait_ended()
            assert now() - began < 1
        assert len(client.answers) == 751

    async def test_no_more_frames_than_the_lead_are_used_ahead_of_their_time(self, connect: Connect) -> None:
        async with connect(lead_frames=2) as client:
            await client.wait_ready()
            began = now()
            sending = asyncio.create_task(client.put(noise(50)))
            for seconds in (0.01, 1.01, 2.01):
                await asyncio.sleep(began + seconds - now())
                # Frame 0 answers no user frame.
                assert len(client.answers) - 1 == int(seconds / FRAME_S) + 2
            sending.cancel()

    @pytest.mark.parametrize("speed", [1, 2, 4])
    async def test_the_speed_is_a_multiple_of_real_time(self, connect: Connect, speed: int) -> None:
        async with connect(speed=speed) as client:
            await client.wait_ready()
            began = now()
            talk = asyncio.create_task(client.put(noise(750)))
            await asyncio.sleep(2)
            received = len(client.answers)
            await asyncio.sleep(4)
            assert len(client.answers) - received == pytest.approx(4 / FRAME_S * speed, abs=1)
            # All but what may be received early.
            await client.wait_frames(601)
            assert now() - began == pytest.approx(590 * FRAME_S / speed, abs=FRAME_S)
            talk.cancel()

    async def test_a_slow_server_drops_the_oldest_frames_and_counts_them(
        self, connect: Connect, runtime: Runtime, engine: FakeBackend
    ) -> None:
        engine.delay = 0.05  # four of them for a frame: 200 ms
        async with connect() as client:
            await client.wait_frames(1)
            await client.stream(noise(100))
            counted = metric(runtime, "dropped_frames_total")
            await client.end_audio()
            ended = await client.wait_ended()
        summary = ended.summary
        assert 40 <= summary.dropped_frames <= 60
        assert summary.frames + summary.dropped_frames == 101
        assert [event.dropped for event in client.answers] == sorted(event.dropped for event in client.answers)
        assert client.answers[-1].dropped == summary.dropped_frames
        assert summary.late_frames == metric(runtime, "late_frames_total") == summary.frames - 1
        assert metric(runtime, "dropped_frames_total") == summary.dropped_frames
        assert counted == pytest.approx(summary.dropped_frames, abs=2)
        # It stays in the present: no frame is older than what may wait.
        assert max(event.latency for event in client.answers) <= 11 * 0.2 + 0.01

    async def test_a_late_client_does_not_delay_others(self, connect: Connect) -> None:
        async with connect() as late, connect() as prompt:
            await late.wait_ready()
            await prompt.stream(noise(20))
            assert len(prompt.answers) == 21
            assert max(event.latency for event in prompt.answers) < FRAME_S / 2
            assert len(late.answers) == 1


async def test_concurrent_sessions_get_their_own_answers(connect: Connect, runtime: Runtime) -> None:
    recordings = [noise(10, seed=seed) for seed in range(20)]

    async def one(pcm: NDArray[np.float32]) -> list[list[int]]:
        async with connect() as client:
            await client.stream(pcm)
            await client.end_audio()
            await client.wait_ended()
        return client.tokens

    answers = await asyncio.gather(*map(one, recordings))
    for pcm, tokens in zip(recordings, answers, strict=True):
        assert tokens == await offline(runtime, pcm, 11)


class TestBeforeReady:
    async def test_audio_in_real_time_beyond_the_capacity_is_dropped_and_counted(
        self, connect: Connect, runtime: Runtime, engine: FakeBackend
    ) -> None:
        engine.delay = 1.0  # three calls until Ready
        async with connect() as client:
            await client.stream(noise(30))
            await client.wait_ready()
            engine.delay = 0.0
            await client.wait_frames(1)
            assert client.answers[0].dropped == 20
            await client.end_audio()
            ended = await client.wait_ended()
        assert ended.summary.frames == 1 + 10
        assert ended.summary.dropped_frames == metric(runtime, "dropped_frames_total") == 20

    async def test_only_the_latest_early_audio_is_used(
        self, connect: Connect, runtime: Runtime, engine: FakeBackend
    ) -> None:
        engine.delay = 0.2
        pcm = noise(12)
        async with connect(early_frames=2, speed=0) as client:
            await client.stream(pcm[: 7 * FRAME])
            await client.wait_ready()
            engine.delay = 0.0
            await client.stream(pcm[7 * FRAME :])
            await client.end_audio()
            ended = await client.wait_ended()
        assert ended.summary.dropped_frames == metric(runtime, "dropped_frames_total") == 5
        assert client.tokens == await offline(runtime, pcm[5 * FRAME :], 8)

    async def test_a_burst_right_after_ready_is_used_in_part(
        self, connect: Connect, runtime: Runtime, engine: FakeBackend
    ) -> None:
        """A client that queues its microphone's audio until Ready is not behind for the whole call."""
        pcm = noise(32)
        async with connect(early_frames=3, lead_frames=3, burst=1.0) as client:
            await client.wait_ready()
            await client.put(pcm[: 12 * FRAME])
            await client.stream(pcm[12 * FRAME :])
            began = now()
            await client.end_audio()
            ended = await client.wait_ended()
            # The last frame is answered at most so long after it was sent.
            assert now() - began <= 3 * FRAME_S
        assert 6 <= ended.summary.dropped_frames <= 10
        assert ended.summary.frames == 33 - ended.summary.dropped_frames

    async def test_a_burst_keeps_its_latest_frames_and_counts_the_others(
        self, connect: Connect, engine: FakeBackend
    ) -> None:
        engine.delay = 1.0
        async with connect(speed=0) as client:
            sending = asyncio.create_task(client.put(noise(100)))
            await client.wait_ready()
            engine.delay = 0.0
            await sending
            await client.end_audio()
            ended = await client.wait_ended()
        assert ended.summary.frames - 1 + ended.summary.dropped_frames == 100
        assert ended.summary.frames > 10
