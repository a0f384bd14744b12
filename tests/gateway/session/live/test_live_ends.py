"""How a live call ends: its limits, its reasons, and the slot it leaves behind."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.engine.fake import FakeEngine, FakeSession
from gateway.errors import AudioError, EngineError
from gateway.session.events import Ended, Reason, WarningEvent
from gateway.session.live import open_live_session
from gateway.session.runtime import Runtime
from tests.gateway.session.live.conftest import (
    ANA,
    SAMPLING,
    ConversationLease,
    LeapingPolicy,
    metric,
    noise,
    now,
    offline,
    until,
)

# What comes instead in a later pytest-asyncio is for whole sessions.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Hours take milliseconds here."""
    return LeapingPolicy()


class TestLimits:
    async def test_who_is_held_back_is_not_idle(self, call: ConversationLease) -> None:
        """One message may hold more audio than the idle limit is long."""
        async with call(idle=5.0) as line:
            await line.live.put(noise(200))
            line.live.hang_up()
            ended = await line.over()
        assert (ended.reason, ended.summary.frames) == (Reason.COMPLETED, 201)

    @pytest.mark.parametrize("on_gap", ["wait", "silence"])
    async def test_idle(self, call: ConversationLease, on_gap: str) -> None:
        async with call(on_gap=on_gap, idle=5.0) as line:
            await line.ready()
            await asyncio.sleep(4)
            await line.live.put(noise(0.5))
            ended = await line.over()
        assert (ended.reason, ended.message) == (Reason.IDLE, "no audio came for 5 s")
        assert line.ended_at == pytest.approx(9, abs=0.1)

    @pytest.mark.parametrize("speaking", [True, False])
    async def test_the_longest_call_ends_after_a_warning(self, call: ConversationLease, speaking: bool) -> None:
        async with call(duration=60.0, warn=10.0, idle=1000.0) as line:
            await line.ready()
            talk = asyncio.create_task(line.speak(noise(1000))) if speaking else None
            ended = await line.over()
            if talk:
                talk.cancel()
        assert (ended.reason, ended.message) == (Reason.MAX_DURATION, "the call reached its longest duration of 60 s")
        assert line.ended_at == pytest.approx(60, abs=0.1)
        (warning,) = line.of(WarningEvent)
        assert warning.code == "max_duration"
        assert warning.seconds_left == pytest.approx(10, abs=0.1)
        at = line.times[line.events.index(warning)]
        assert at == pytest.approx(line.times[-1] - 10, abs=0.1)

    async def test_a_warning_as_long_as_the_call_comes_at_once(self, call: ConversationLease) -> None:
        async with call(duration=5.0, warn=30.0) as line:
            ended = await line.over()
        assert ended.reason is Reason.MAX_DURATION
        assert len(line.of(WarningEvent)) == 1

    async def test_who_does_not_read_is_sent_away(self, call: ConversationLease) -> None:
        async with call(listening=False, output_frames=5) as line:
            await line.live.put(noise(10))
            async with asyncio.timeout(10):
                await line.live.over.wait()
            await line.listen()
        assert (line.ended.reason, line.ended.message) == (
            Reason.SLOW_CLIENT,
            "more than 0.4 s of the agent's audio were not read",
        )
        assert len(line.spoken) == 6

    async def test_who_reads_in_time_stays(self, call: ConversationLease) -> None:
        async with call(output_frames=2) as line:
            await line.speak(noise(50))
            assert not line.live.over.is_set()
        assert len(line.spoken) == 51


class TestEnds:
    async def test_the_first_reason_counts(self, call: ConversationLease) -> None:
        async with call() as line:
            await line.ready()
            line.live.stop(Reason.ERROR, "not audio")
            line.live.stop_for_drain()
            line.live.hang_up()
            ended = await line.over()
        assert (ended.reason, ended.message) == (Reason.ERROR, "not audio")

    async def test_a_stop_does_not_wait_for_the_prompt(
        self, call: ConversationLease, runtime: Runtime, engine: FakeEngine
    ) -> None:
        engine.delay = 10
        async with call() as line:
            await asyncio.sleep(0.1)
            line.live.stop(Reason.DISCONNECTED)
            await line.over()
            assert now() < 1
        assert [type(event) for event in line.events] == [Ended]
        assert metric(runtime, "ended_total", reason="disconnected") == 1

    async def test_a_failing_engine_is_the_reason(self, call: ConversationLease, engine: FakeEngine) -> None:
        async with call() as line:
            await line.ready()
            engine.down = True
            await line.live.put(noise(1))
            ended = await line.over()
        assert (ended.reason, ended.message) == (Reason.ENGINE, "the fake engine is down")

    async def test_who_is_silent_is_told_of_it_too(self, call: ConversationLease, engine: FakeEngine) -> None:
        async with call(on_gap="wait") as line:
            await line.ready()
            await asyncio.sleep(5.3)
            engine.down = True
            began = now()
            ended = await line.over()
        assert (ended.reason, ended.message) == (Reason.ENGINE, "the models are not available")
        assert now() - began <= 1.1

    @pytest.mark.parametrize(
        ("error", "reason", "message"),
        [
            (EngineError("broken"), Reason.ENGINE, "broken"),
            (AudioError("not audio"), Reason.CLIENT_ERROR, "not audio"),
            (ValueError("secret"), Reason.ERROR, "internal error"),
        ],
    )
    async def test_whatever_fails_is_told(
        self,
        call: ConversationLease,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        error: Exception,
        reason: Reason,
        message: str,
    ) -> None:
        async def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(FakeSession, "step", fail)
        with caplog.at_level(logging.ERROR):
            async with call() as line:
                ended = await line.over()
        assert (ended.reason, ended.message) == (reason, message)
        assert ("secret" in caplog.text) == (message == "internal error")

    async def test_nothing_is_heard_once_it_is_over(self, call: ConversationLease) -> None:
        async with call() as line:
            await line.ready()
            line.live.stop(Reason.DISCONNECTED)
            await line.over()
            async with asyncio.timeout(1):
                await line.live.put(noise(100))
        assert line.ended.summary.frames == len(line.spoken) == 1

    async def test_draining_ends_it_when_the_time_is_over(self, runtime: Runtime) -> None:
        runtime.settings.drain_seconds = 3
        async with open_live_session(runtime, ANA, SAMPLING) as live:
            events = []
            draining = runtime.begin_drain()
            began = now()
            async for event in live.events():
                events.append(event)
        assert now() - began == pytest.approx(3, abs=0.1)
        assert events[-1].reason is Reason.DRAINED
        assert events[-1].message == "the server is shutting down"
        await draining


class TestSlots:
    async def test_leaving_frees_the_slot(self, runtime: Runtime, engine: FakeEngine) -> None:
        async with open_live_session(runtime, ANA, SAMPLING):
            assert runtime.admission.taken == 1
        assert runtime.admission.taken == 0
        assert engine.opened == engine.closed == 1
        assert metric(runtime, "ended_total", reason="disconnected") == 1

    @pytest.mark.parametrize("delay", [0.0, 0.01, 0.05, 0.2])
    async def test_a_face_that_is_cancelled_frees_it(self, runtime: Runtime, engine: FakeEngine, delay: float) -> None:
        engine.delay = 0.02

        async def face() -> None:
            async with open_live_session(runtime, ANA, SAMPLING) as live:
                await live.put(noise(5))
                await asyncio.sleep(60)

        task = asyncio.create_task(face())
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)
        assert runtime.admission.taken == 0
        assert engine.opened == engine.closed

    @pytest.mark.parametrize("left_after", [0.0, 0.1, 0.27, 0.35, 0.44, 0.5])
    async def test_late_output_never_reaches_the_next_in_the_slot(
        self, call: ConversationLease, runtime: Runtime, engine: FakeEngine, left_after: float
    ) -> None:
        """Somebody goes in the middle of a frame, at each stage of it; their models' rows are free before the slot."""
        runtime.admission.slots = 1
        engine.delay = 0.07
        pcm = noise(4, seed=9)
        async with call() as first:
            await first.live.put(pcm)
            await asyncio.sleep(left_after)
        before = list(first.events)
        await until(lambda: runtime.admission.taken == 0)
        assert engine.opened == engine.closed
        async with call() as second:
            await second.live.put(pcm)
            second.live.hang_up()
            await second.over()
        await until(lambda: runtime.admission.taken == 0)
        engine.delay = 0
        assert second.tokens == await offline(runtime, pcm, 5)
        assert first.events == before
        assert isinstance(before[-1], Ended)
