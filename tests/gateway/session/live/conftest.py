"""Live calls on the fake engine in a loop whose time leaps to the next thing due: hours take milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.engine.fake import FakeEngine
from gateway.engine.sampling import Sampling
from gateway.manifest import Manifest
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason
from gateway.session.limits import LiveLimits, OnGap
from gateway.session.live import LiveSession
from gateway.session.recorded import Reply
from gateway.session.runtime import Persona, Runtime
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics

SAMPLING = Sampling(seed=1, audio_temperature=0.8, audio_top_k=250, text_temperature=0.7, text_top_k=25)
ANA = Persona("NATF0", "You are Ana.")
FRAME = 1920
FRAME_S = 0.08


class LeapingLoop(asyncio.SelectorEventLoop):
    """With nothing to do now, it is already the time at which there is."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__()

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0]._when)
        # As real time does, so that nobody waits forever for the last bit of a sum.
        self._now += 1e-7
        super()._run_once()


class LeapingPolicy(asyncio.DefaultEventLoopPolicy):
    """For pytest-asyncio."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return LeapingLoop()


def now() -> float:
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], bool], seconds: float = 100.0) -> None:
    """Looks every millisecond of the loop's time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def noise(frames: float, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(frames * FRAME)).astype(np.float32)


@pytest.fixture
def runtime(models: Path, manifest: Manifest, engine: FakeEngine) -> Runtime:
    return Runtime(Settings(models=models, release_wait=0.05), manifest, engine, Metrics(manifest.slots))


def metric(runtime: Runtime, name: str, **labels: str) -> float:
    return runtime.metrics.registry.get_sample_value(f"personaplex_{name}", labels) or 0.0


async def offline(runtime: Runtime, pcm: NDArray[np.float32], frames: int) -> list[list[int]]:
    async with runtime.open(ANA, SAMPLING) as held:
        reply = Reply(held.conversation, pcm, runtime.manifest, frames)
        return [[frame.text_token, *frame.codes.tolist()] async for frame in reply.frames()]


@dataclass
class OnTheLine:
    """A live call, somebody who reads its events, and when they came."""

    live: LiveSession
    events: list[Event] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def spoken(self) -> list[AgentAudio]:
        return self.of(AgentAudio)

    @property
    def tokens(self) -> list[list[int]]:
        """[frames, 9]: text, then the agent's codes."""
        return [[event.frame.text_token, *event.frame.codes.tolist()] for event in self.spoken]

    @property
    def ended(self) -> Ended:
        (ended,) = self.of(Ended)
        assert self.events[-1] is ended
        return ended

    @property
    def ready_at(self) -> float:
        (ready_at,) = [at for at, event in zip(self.times, self.events, strict=True) if isinstance(event, Ready)]
        return ready_at

    @property
    def ended_at(self) -> float:
        """Seconds since ready."""
        assert self.ended
        return self.times[-1] - self.ready_at

    @property
    def answered_at(self) -> list[float]:
        """When each user frame was answered."""
        return [at for at, event in zip(self.times, self.events, strict=True) if isinstance(event, AgentAudio)][1:]

    async def listen(self) -> None:
        async for event in self.live.events():
            self.events.append(event)
            self.times.append(now())

    async def ready(self) -> None:
        await until(lambda: bool(self.of(Ready)))

    async def frames(self, number: int) -> None:
        """Until so many were heard."""
        await until(lambda: len(self.spoken) >= number)

    async def speak(self, pcm: NDArray[np.float32]) -> None:
        """In real time, frame by frame."""
        for at in range(0, len(pcm), FRAME):
            await self.live.put(pcm[at : at + FRAME])
            await asyncio.sleep(FRAME_S)

    async def over(self) -> Ended:
        async with asyncio.timeout(10_000):
            await self.live.over.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        return self.ended


ConversationLease = Callable[..., AbstractAsyncContextManager[OnTheLine]]


@pytest.fixture
def call(runtime: Runtime) -> ConversationLease:
    """Opens a call as `open_call` does, on the loop's time; limits as keywords, `listening=False` for nobody there."""

    @asynccontextmanager
    async def make(
        on_gap: OnGap = "wait", listening: bool = True, sampling: Sampling = SAMPLING, **limits: float
    ) -> AsyncIterator[OnTheLine]:
        async with runtime.open(ANA, sampling) as held:
            chosen = replace(LiveLimits(), **limits)  # type: ignore[arg-type]
            live = LiveSession(held, runtime, ANA, sampling, on_gap, chosen, clock=asyncio.get_running_loop().time)
            line = OnTheLine(live)
            running = asyncio.create_task(live.run())
            ears = asyncio.create_task(line.listen()) if listening else None
            try:
                yield line
            finally:
                live.stop(Reason.DISCONNECTED)
                held.reason = await running
                if ears is not None:
                    with suppress(asyncio.CancelledError):
                        await ears

    return make
