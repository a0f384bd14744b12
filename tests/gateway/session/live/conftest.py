"""Live sessions on the fake engine, in an event loop whose clock jumps to the next timer: hours take milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.engine.fake import FakeBackend
from gateway.engine.sampling import SamplingParams
from gateway.errors import TakenOver
from gateway.manifest import Manifest
from gateway.session.caller import Caller
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason
from gateway.session.input_queue import InputQueue
from gateway.session.limits import LiveLimits, OnGap
from gateway.session.live import LiveSession, Parts, TransportClosed
from gateway.session.live_sessions import LiveSessions
from gateway.session.persona import Persona
from gateway.session.recorded import RecordedResponse
from gateway.session.runtime import Runtime
from gateway.settings import Settings
from gateway.telemetry.metrics import Api, Metrics
from tests.series import total

SAMPLING = SamplingParams(seed=1, audio_temperature=0.8, audio_top_k=250, text_temperature=0.7, text_top_k=25)
CALLER = Caller(Api.CONVERSE)
ANA = Persona("NATF0", "You are Ana.")
FRAME = 1920
FRAME_S = 0.08


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when nothing is ready."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__()

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0]._when)
        # Time passes, so that rounding cannot make a deadline unreachable.
        self._now += 1e-7
        super()._run_once()


class JumpingPolicy(asyncio.DefaultEventLoopPolicy):
    """For pytest-asyncio."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return JumpingLoop()


def now() -> float:
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], bool], seconds: float = 100.0) -> None:
    """Poll every millisecond of the loop's time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def noise(frames: float, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(frames * FRAME)).astype(np.float32)


@pytest.fixture
def runtime(models: Path, manifest: Manifest, engine: FakeBackend) -> Runtime:
    manifest = manifest.model_copy(update={"slots": 20})
    runtime = Runtime(Settings(models=models, release_wait=0.05), manifest, engine, Metrics(manifest.slots))
    # The loop's clock leaps; an answer that is valid for a second of real time would hide an engine that goes.
    runtime.readiness.period = 0
    parts = Parts(manifest, runtime.metrics, runtime.readiness, runtime.sessions, now)
    runtime.live_sessions = LiveSessions(runtime.leases, runtime.settings, parts)
    return runtime


def metric(runtime: Runtime, name: str, **labels: str) -> float:
    return total(runtime.metrics, f"personaplex_{name}", **labels)


async def offline(runtime: Runtime, pcm: NDArray[np.float32], frames: int) -> list[list[int]]:
    """Tokens [frames, 9] of a recorded request with the same audio."""
    async with runtime.leases.open(ANA, SAMPLING, CALLER) as lease:
        reply = RecordedResponse(lease.conversation, pcm, runtime.manifest, frames)
        return [[frame.text_token, *frame.codes.tolist()] async for frame in reply.frames()]


class Client:
    """A client and its transport in one: sends audio, and records events and the times of their arrival."""

    def __init__(self, *, reads: bool) -> None:
        self.session: LiveSession
        self.events: list[Event] = []
        self.times: list[float] = []
        self.aborted = False
        self.result: Ended | None = None
        self.taken_over = False
        self.fault: Exception | None = None
        self._input: asyncio.Future[InputQueue] = asyncio.get_running_loop().create_future()
        self._reads = asyncio.Event()
        self._faulty = asyncio.Event()
        if reads:
            self._reads.set()

    async def receive(self, audio: InputQueue) -> None:
        """For the session."""
        if not self._input.done():
            self._input.set_result(audio)
        await self._faulty.wait()
        assert self.fault is not None
        raise self.fault

    async def send(self, event: Event) -> None:
        """For the session."""
        await self._reads.wait()
        self.events.append(event)
        self.times.append(now())

    async def run(self) -> Ended:
        """Run the session to its end."""
        try:
            self.result = await self.session.run(self)
        except TakenOver:
            self.taken_over = True
            raise
        return self.result

    def abort(self) -> None:
        """For the session."""
        self.aborted = True

    async def put(self, pcm: NDArray[np.float32]) -> None:
        """Send samples; wait while the session takes no more."""
        await (await self._input).put(pcm)

    async def stream(self, pcm: NDArray[np.float32]) -> None:
        """Send samples in real time, frame by frame."""
        for at in range(0, len(pcm), FRAME):
            await self.put(pcm[at : at + FRAME])
            await asyncio.sleep(FRAME_S)

    async def end_audio(self) -> None:
        (await self._input).close()

    def start_reading(self) -> None:
        self._reads.set()

    def fail(self, fault: Exception) -> None:
        """Make the transport raise an error."""
        self.fault = fault
        self._faulty.set()

    def disconnect(self) -> None:
        self.fail(TransportClosed())

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def answers(self) -> list[AgentAudio]:
        return self.of(AgentAudio)

    @property
    def tokens(self) -> list[list[int]]:
        """[frames, 9]: text, then the agent's codes."""
        return [[event.frame.text_token, *event.frame.codes.tolist()] for event in self.answers]

    @property
    def ended(self) -> Ended:
        """What `run` returned; the last event, unless the client had disconnected."""
        assert self.result is not None
        sent = self.of(Ended)
        assert sent == ([] if self.result.reason is Reason.DISCONNECTED else [self.result])
        assert self.events[-1:] == sent or not sent
        return self.result

    @property
    def ready_at(self) -> float:
        (ready_at,) = [at for at, event in zip(self.times, self.events, strict=True) if isinstance(event, Ready)]
        return ready_at

    @property
    def ended_at(self) -> float:
        """Seconds since Ready."""
        assert self.ended
        return self.times[-1] - self.ready_at

    @property
    def answered_at(self) -> list[float]:
        """When each user frame was answered."""
        return [at for at, event in zip(self.times, self.events, strict=True) if isinstance(event, AgentAudio)][1:]

    async def wait_ready(self) -> None:
        await until(lambda: bool(self.of(Ready)))

    async def wait_frames(self, number: int) -> None:
        """Wait for so many agent frames."""
        await until(lambda: len(self.answers) >= number)

    async def wait_ended(self) -> Ended:
        await until(lambda: self.result is not None, 10_000)
        return self.ended


Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def connect(runtime: Runtime) -> Connect:
    """Run a session with limits as keywords; disconnect on exit."""

    @asynccontextmanager
    async def make(
        on_gap: OnGap = "wait",
        reads: bool = True,
        sampling: SamplingParams = SAMPLING,
        token: str | None = None,
        **limits: float,
    ) -> AsyncIterator[Client]:
        client = Client(reads=reads)
        chosen = replace(LiveLimits(), **limits)  # type: ignore[arg-type]
        async with runtime.live_sessions.open(ANA, sampling, CALLER, on_gap, chosen, token=token) as client.session:
            running = asyncio.create_task(client.run())
            try:
                yield client
            finally:
                client.disconnect()
                with suppress(asyncio.CancelledError, TakenOver):
                    await running

    return make
