"""How a live session ends: limits, reasons, and the release of its slot."""

from __future__ import annotations

import asyncio

import pytest

from gateway.engine.fake import FakeBackend
from gateway.session.events import Ended, Reason, WarningEvent
from gateway.session.runtime import Runtime
from tests.gateway.session.live.conftest import (
    ANA,
    CALLER,
    SAMPLING,
    Client,
    Connect,
    JumpingPolicy,
    metric,
    noise,
    now,
    offline,
    until,
)

# The replacement in later versions of pytest-asyncio applies to whole sessions.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Hours take milliseconds."""
    return JumpingPolicy()


class TestLimits:
    async def test_a_client_that_is_slowed_down_is_not_idle(self, connect: Connect) -> None:
        """One message may hold more audio than the idle limit."""
        async with connect(idle=5.0) as client:
            await client.put(noise(200))
            await client.end_audio()
            ended = await client.wait_ended()
        assert (ended.reason, ended.summary.frames) == (Reason.COMPLETED, 201)

    @pytest.mark.parametrize("on_gap", ["wait", "silence"])
    async def test_idle(self, connect: Connect, on_gap: str) -> None:
        async with connect(on_gap=on_gap, idle=5.0) as client:
            await client.wait_ready()
            await asyncio.sleep(4)
            await client.put(noise(0.5))
            ended = await client.wait_ended()
        assert (ended.reason, ended.message) == (Reason.IDLE, "no audio came for 5 s")
        assert client.ended_at == pytest.approx(9, abs=0.1)

    @pytest.mark.parametrize("sends_audio", [True, False])
    async def test_maximum_duration_ends_the_session_after_a_warning(self, connect: Connect, sends_audio: bool) -> None:
        async with connect(duration=60.0, warn=10.0, idle=1000.0) as client:
            await client.wait_ready()
            talk = asyncio.create_task(client.stream(noise(1000))) if sends_audio else None
            ended = await client.wait_ended()
            if talk:
                talk.cancel()
        assert (ended.reason, ended.message) == (Reason.MAX_DURATION, "the call reached its longest duration of 60 s")
        assert client.ended_at == pytest.approx(60, abs=0.1)
        (warning,) = client.of(WarningEvent)
        assert warning.code == "max_duration"
        assert warning.seconds_left == pytest.approx(10, abs=0.1)
        at = client.times[client.events.index(warning)]
        assert at == pytest.approx(client.times[-1] - 10, abs=0.1)

    async def test_a_warning_time_longer_than_the_session_warns_at_once(self, connect: Connect) -> None:
        async with connect(duration=5.0, warn=30.0) as client:
            ended = await client.wait_ended()
        assert ended.reason is Reason.MAX_DURATION
        assert len(client.of(WarningEvent)) == 1

    async def test_a_client_that_does_not_read_is_disconnected(self, connect: Connect, runtime: Runtime) -> None:
        async with connect(reads=False, output_frames=5) as client:
            await client.put(noise(10))
            await until(lambda: client.aborted, 10)
        assert client.events == []
        assert metric(runtime, "ended_total", reason="slow_client") == 1
        assert metric(runtime, "frames_total") <= 7

    async def test_a_client_that_reads_late_gets_everything(self, connect: Connect) -> None:
        async with connect(reads=False, output_frames=5) as client:
            await client.put(noise(10))
            await asyncio.sleep(0.5)
            client.start_reading()
            ended = await client.wait_ended()
        assert (ended.reason, ended.message) == (
            Reason.SLOW_CLIENT,
            "more than 0.4 s of the agent's audio were not read",
        )
        assert len(client.answers) == ended.summary.frames

    async def test_a_client_that_reads_in_time_stays(self, connect: Connect) -> None:
        async with connect(output_frames=2) as client:
            await client.stream(noise(50))
            assert not client.of(Ended)
        assert len(client.answers) == 51


class TestEnds:
    async def test_the_first_reason_counts(self, connect: Connect) -> None:
        async with connect() as client:
            await client.wait_ready()
            client.session.stop(Reason.ERROR, "not audio")
            client.session.stop_for_drain()
            await client.end_audio()
            ended = await client.wait_ended()
        assert (ended.reason, ended.message) == (Reason.ERROR, "not audio")

    async def test_stop_does_not_wait_for_the_prompt(
        self, connect: Connect, runtime: Runtime, engine: FakeBackend
    ) -> None:
        engine.delay = 10
        async with connect() as client:
            await asyncio.sleep(0.1)
            client.session.stop(Reason.DISCONNECTED)
            await client.wait_ended()
            assert now() < 1
        assert client.events == []
        assert metric(runtime, "ended_total", api="converse", reason="disconnected") == 1
        assert metric(runtime, "ended_total") == 1

    @pytest.mark.parametrize("delay", [0.0, 0.01, 0.05, 0.2])
    async def test_cancelling_the_handler_frees_the_slot(
        self, runtime: Runtime, engine: FakeBackend, delay: float
    ) -> None:
        engine.delay = 0.02

        async def handler() -> None:
            client = Client(reads=True)
            async with runtime.live_sessions.open(ANA, SAMPLING, CALLER) as session:
                sending = asyncio.create_task(client.put(noise(5)))
                try:
                    client.session = session
                    await client.run()
                finally:
                    sending.cancel()

        task = asyncio.create_task(handler())
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)
        assert runtime.admission.taken == 0
        assert engine.opened == engine.closed

    @pytest.mark.parametrize("left_after", [0.0, 0.1, 0.27, 0.35, 0.44, 0.5])
    async def test_late_output_never_reaches_the_next_session_of_the_slot(
        self, connect: Connect, runtime: Runtime, engine: FakeBackend, left_after: float
    ) -> None:
        """A client disconnects at each stage of a frame; the rows of the models are free before the slot is."""
        runtime.admission.slots = 1
        engine.delay = 0.07
        pcm = noise(4, seed=9)
        async with connect() as first:
            await first.put(pcm)
            await asyncio.sleep(left_after)
        before = list(first.events)
        assert not first.of(Ended)
        await until(lambda: runtime.admission.taken == 0)
        assert engine.opened == engine.closed
        async with connect() as second:
            await second.put(pcm)
            await second.end_audio()
            await second.wait_ended()
        await until(lambda: runtime.admission.taken == 0)
        engine.delay = 0
        assert second.tokens == await offline(runtime, pcm, 5)
        assert first.events == before
