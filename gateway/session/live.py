"""A live call: the caller's audio in, events out, and a frame loop between them that keeps the time limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from uuid import uuid4

import numpy as np

from gateway.engine.backend import Floats
from gateway.engine.conversation import AgentFrame
from gateway.engine.sampling import Sampling
from gateway.errors import GatewayError
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason, Summary, WarningEvent
from gateway.session.input_queue import InputQueue, UserFrame
from gateway.session.keys import KeyHolder
from gateway.session.limits import LiveLimits, OnGap
from gateway.session.runtime import ConversationLease, Persona, Runtime
from gateway.session.session_info import SessionInfo
from gateway.session.timeline import Timeline

logger = logging.getLogger(__name__)

# While a caller is silent nothing is asked of the engine: this often, whether it is still there.
_LOOK_S = 1.0

_MESSAGES = {
    Reason.COMPLETED: "the conversation is over",
    Reason.DISCONNECTED: "the connection was lost",
    Reason.DRAINED: "the server is shutting down",
}


class LiveSession:
    """One caller on the line. Made by `open_call`.

    A face does three things with it, each in a task of its own: hand over samples (`put`, then `hang_up` when the
    caller is done), pass on `events` until Ended, and look at `over`, which is set when the call has ended for a
    reason that a face busy with a stuck connection would not otherwise see.
    """

    def __init__(
        self,
        call: ConversationLease,
        runtime: Runtime,
        persona: Persona,
        sampling: Sampling,
        on_gap: OnGap,
        limits: LiveLimits,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        manifest = runtime.manifest
        self.id = str(uuid4())
        self.over = asyncio.Event()
        self._call = call
        self._runtime = runtime
        self._voice = persona.voice if isinstance(persona.voice, str) else "recording"
        self._sampling = sampling
        self._on_gap = on_gap
        self._limits = limits
        self._clock = clock
        self._frame_seconds = 1 / manifest.frame_rate
        self._silence = np.zeros(manifest.frame_size, np.float32)
        self._input_queue = InputQueue(manifest.frame_size, self._frame_seconds, limits.input_frames, clock)
        # Room for the frames a caller may leave unread and the few events that are not frames.
        self._outbox: asyncio.Queue[Event] = asyncio.Queue()
        self._unread = 0
        self._stopping: asyncio.Future[tuple[Reason, str]] = asyncio.get_running_loop().create_future()
        self._timeline = Timeline(self._input_queue, self._frame_seconds, limits, clock)
        self._dropped = 0
        self._warned = False
        self._frames = 0
        self._late = 0
        self._texts: list[str] = []

    @property
    def info(self) -> SessionInfo:
        """The session as an operator sees it."""
        return SessionInfo(self.id, "live", self._voice)

    async def put(self, pcm: Floats) -> None:
        """The caller's next samples [T] float32 at 24 kHz, any number; waits while the caller is ahead of time."""
        await self._input_queue.put(pcm)

    def hang_up(self) -> None:
        """The caller is done: answer what was sent, then end with COMPLETED."""
        self._input_queue.close()

    def stop(self, reason: Reason, message: str | None = None) -> None:
        """End the call now; the first reason given counts."""
        if not self._stopping.done():
            self._stopping.set_result((reason, message or _MESSAGES.get(reason, reason.value)))

    def stop_for_drain(self) -> None:
        """The server's drain time is over."""
        self.stop(Reason.DRAINED)

    async def events(self) -> AsyncGenerator[Event, None]:
        """What happens, until and including Ended; for one reader."""
        while True:
            event = await self._outbox.get()
            if isinstance(event, AgentAudio):
                self._unread -= 1
            yield event
            if isinstance(event, Ended):
                return

    async def run(self) -> Reason:
        """The whole call: start, hear, end. Never raises for a reason the caller should be told."""
        loop = asyncio.ensure_future(self._converse())
        try:
            await asyncio.wait([loop, self._stopping], return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.done():
                reason, message = self._stopping.result()
            else:
                reason, message = await self._outcome(loop)
        finally:
            loop.cancel()
            await asyncio.wait([loop])
            if not loop.cancelled():
                loop.exception()
            self._input_queue.close()
        self._outbox.put_nowait(Ended(reason, message, self._summary()))
        self.over.set()
        return reason

    async def _outcome(self, loop: asyncio.Future[tuple[Reason, str]]) -> tuple[Reason, str]:
        try:
            return await loop
        except GatewayError as error:
            return Reason(error.end_reason), error.message
        except Exception:
            logger.exception("conversation %s failed", self.id)
            return Reason.ERROR, "internal error"

    async def _converse(self) -> tuple[Reason, str]:
        began = self._clock()
        first = await self._call.conversation.start()
        self._outbox.put_nowait(Ready(self.id, self._voice, self._sampling.seed, self._clock() - began))
        self._say(first, None)
        timeline = self._timeline = Timeline(self._input_queue, self._frame_seconds, self._limits, self._clock)
        self._input_queue.last_at = timeline.ready_at
        while True:
            if (early := timeline.early()) > 0:
                await asyncio.sleep(early)
            free_at = self._clock()
            came = await self._next_frame()
            if not isinstance(came, UserFrame):
                return came
            asked_at = timeline.asked_at(came, free_at)
            frame = await self._call.conversation.hear(came.pcm, live=True)
            timeline.hear()
            self._say(frame, max(self._clock() - asked_at, 0.0))
            if self._unread > self._limits.output_frames:
                seconds = self._limits.output_frames * self._frame_seconds
                return Reason.SLOW_CLIENT, f"more than {seconds:.1f} s of the agent's audio were not read"

    async def _next_frame(self) -> UserFrame | tuple[Reason, str]:
        """The next user frame, silence in its place where the caller wished so, or why there is none."""
        timeline = self._timeline
        while True:
            wait = min(self._until_next_limit(), _LOOK_S)
            if self._on_gap == "silence":
                wait = min(wait, max(timeline.due_in() + self._frame_seconds, 0.0))
            try:
                async with asyncio.timeout(wait):
                    frame = await self._input_queue.take()
            except TimeoutError:
                ended = self._check_duration() or self._check_idle()
                if ended is not None:
                    return ended
                if self._on_gap == "silence" and timeline.due_in() + self._frame_seconds <= 0:
                    self._runtime.metrics.gap_frames.inc()
                    timeline.miss()
                    return UserFrame(self._silence, self._clock())
                if self._on_gap == "wait" and not await self._runtime.engine.ready():
                    return Reason.ENGINE, "the models are not available"
                continue
            if frame is None:
                return Reason.COMPLETED, _MESSAGES[Reason.COMPLETED]
            if timeline.refuse():
                continue
            return self._check_duration() or frame

    def _until_next_limit(self) -> float:
        now, limits = self._clock(), self._limits
        end = self._timeline.ready_at + limits.duration
        moments = [self._input_queue.last_at + limits.idle, end if self._warned else end - limits.warn]
        return max(min(moments) - now, 0.0)

    def _check_idle(self) -> tuple[Reason, str] | None:
        """Why the call must end now that nothing waits to be heard, if it must."""
        if self._clock() - self._input_queue.last_at >= self._limits.idle and not len(self._input_queue):
            return Reason.IDLE, f"no audio came for {self._limits.idle:g} s"
        return None

    def _check_duration(self) -> tuple[Reason, str] | None:
        """Why the call must end now, if it must; warns once before."""
        limits = self._limits
        left = self._timeline.ready_at + limits.duration - self._clock()
        if left <= 0:
            return Reason.MAX_DURATION, f"the call reached its longest duration of {limits.duration:g} s"
        if left <= limits.warn and not self._warned:
            self._warned = True
            self._outbox.put_nowait(WarningEvent("max_duration", f"the call will end in {left:.0f} s", left))
        return None

    def _say(self, frame: AgentFrame, latency: float | None) -> None:
        """Pass a frame on; `latency` in seconds, None for frame 0, which answers nothing."""
        self._frames += 1
        if frame.text:
            self._texts.append(frame.text)
        late = latency is not None and latency > self._frame_seconds
        self._late += late
        self._unread += 1
        self._count_dropped()
        self._runtime.metrics.live_frame(latency, late=late, queued=len(self._input_queue))
        self._outbox.put_nowait(AgentAudio(frame, latency or 0.0, self._dropped, len(self._input_queue)))

    def _count_dropped(self) -> None:
        dropped = self._timeline.dropped
        self._runtime.metrics.dropped_frames.inc(dropped - self._dropped)
        self._dropped = dropped

    def _summary(self) -> Summary:
        self._count_dropped()
        return Summary(
            frames=self._frames,
            seconds=self._frames * self._frame_seconds,
            transcript="".join(self._texts).strip(),
            dropped_frames=self._dropped,
            late_frames=self._late,
        )


@asynccontextmanager
async def open_live_session(
    runtime: Runtime,
    persona: Persona,
    sampling: Sampling,
    on_gap: OnGap = "wait",
    key: KeyHolder | None = None,
) -> AsyncIterator[LiveSession]:
    """A live call in a slot of its own, already running; ended and released on the way out, whatever happens.

    Raises what `Calls.open` raises, before anything is taken.
    """
    async with runtime.open(persona, sampling, key) as call:
        live = LiveSession(call, runtime, persona, sampling, on_gap, LiveLimits.of(runtime.settings))
        running = asyncio.create_task(live.run())
        with runtime.on_air(live, live.info):
            try:
                yield live
            finally:
                live.stop(Reason.DISCONNECTED)
                call.reason = await asyncio.shield(running)
