"""A live session: runs one conversation over a transport, frame by frame, and enforces the time limits.

Three tasks share the work of a frame. The transport's reader puts samples into the input queue. The frame loop takes
user frames, passes them to the engine and queues agent frames. The writer sends them. A fourth task wakes about once a
second and checks the limits. The first of them that ends the session gives the reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Protocol

from gateway.engine.sampling import SamplingParams
from gateway.errors import GatewayError
from gateway.session.admission import Slot
from gateway.session.caller import Caller
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason, Summary, WarningEvent
from gateway.session.input_queue import InputQueue
from gateway.session.leases import ConversationLease
from gateway.session.limits import LiveLimits, OnGap
from gateway.session.persona import Persona
from gateway.session.runtime import Runtime
from gateway.session.session_info import SessionInfo
from gateway.telemetry.metrics import Api

logger = logging.getLogger(__name__)

# While a client is silent no frame shows that the engine is gone, so check it this often.
_ENGINE_CHECK_S = 1.0
# Time for the client to read what is queued when the session ends.
_FLUSH_S = 1.0

_MESSAGES = {
    Reason.COMPLETED: "the conversation is over",
    Reason.DISCONNECTED: "the connection was lost",
    Reason.DRAINED: "the server is shutting down",
}


class TransportClosed(Exception):  # noqa: N818 (a client may disconnect at any time)
    """The client has disconnected."""


class LiveTransport(Protocol):
    """One client's connection, in the format of its protocol."""

    async def receive(self, audio: InputQueue) -> None:
        """Put the client's audio into the queue, and close the queue at its end. May return after that.

        Cancelled when the session ends. Raises TransportClosed, and GatewayError for input that cannot be used.
        """

    async def send(self, event: Event) -> None:
        """Send an event; return once there is room for the next one. Raises TransportClosed."""

    def abort(self) -> None:
        """Discard output that the client does not read."""


class LiveSession:
    """One live conversation. Made by `open_live_session`."""

    def __init__(
        self,
        lease: ConversationLease,
        runtime: Runtime,
        persona: Persona,
        sampling: SamplingParams,
        api: Api,
        on_gap: OnGap,
        limits: LiveLimits,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        manifest = runtime.manifest
        self.id = lease.record.id
        self._lease = lease
        self._runtime = runtime
        self._api = api
        self._metrics = runtime.metrics.of[api]
        self._voice = persona.voice_name
        self._seed = sampling.seed
        self._on_gap = on_gap
        self._limits = limits
        self._clock = clock
        self._frame_seconds = 1 / manifest.frame_rate
        self._input = InputQueue(manifest.frame_size, self._frame_seconds, limits, on_gap, clock)
        self._output: deque[Event] = deque()
        self._output_added: asyncio.Future[None] | None = None
        self._ready = asyncio.Event()
        self._end: asyncio.Future[tuple[Reason, str, GatewayError | None]]
        self._end = asyncio.get_running_loop().create_future()
        self._frames = 0
        self._texts: list[str] = []
        self._counted_drops = 0
        self._counted_gaps = 0

    @property
    def info(self) -> SessionInfo:
        """The session as an operator sees it."""
        return SessionInfo(self.id, "live", self._api, self._voice)

    def stop(self, reason: Reason, message: str | None = None, error: GatewayError | None = None) -> None:
        """End the session now. The first reason counts."""
        if not self._end.done():
            self._end.set_result((reason, message or _MESSAGES.get(reason, reason.value), error))

    def stop_for_drain(self) -> None:
        """End the session because the drain time of the server is over."""
        self.stop(Reason.DRAINED)

    async def run(self, transport: LiveTransport) -> Ended:
        """Run the session over `transport` until it ends, and send Ended unless the client has disconnected."""
        writer = asyncio.create_task(self._write(transport))
        work = [asyncio.create_task(part) for part in (transport.receive(self._input), self._converse(), self._watch())]
        for task in (writer, *work):
            task.add_done_callback(self._task_done)
        try:
            reason, message, error = await self._end
            await _cancel(work)
            ended = Ended(reason, message, self._summary(), error)
            self._lease.reason = reason.value
            if reason is not Reason.DISCONNECTED:
                self._post(ended)
                await asyncio.wait([writer], timeout=_FLUSH_S)
            if not writer.done():
                transport.abort()
            return ended
        finally:
            self._input.close()
            await _cancel([*work, writer])

    def _task_done(self, task: asyncio.Task[None]) -> None:
        """End the session if one of its tasks failed."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, TransportClosed):
            self.stop(Reason.DISCONNECTED)
        elif isinstance(error, GatewayError):
            self.stop(Reason(error.end_reason), error.message, error)
        else:
            logger.error("conversation %s failed", self.id, exc_info=error)
            self.stop(Reason.ERROR, "internal error")

    async def _converse(self) -> None:
        """Run the frame loop, from the prompt to the answer to the last user frame."""
        clock, conversation, user_frames, output = self._clock, self._lease.conversation, self._input, self._output
        metrics, limits, frame_seconds = self._metrics, self._limits, self._frame_seconds
        began = clock()
        frame = await conversation.start()
        prefix = conversation.prefix
        self._post(Ready(self.id, self._voice, self._seed, clock() - began, prefix.length if prefix else 0))
        user_frames.start()
        self._ready.set()
        latency = 0.0
        while True:
            self._frames += 1
            if frame.text:
                self._texts.append(frame.text)
            if user_frames.dropped != self._counted_drops or user_frames.gaps != self._counted_gaps:
                self._count_losses()
            output.append(AgentAudio(frame, latency, user_frames.dropped, len(user_frames.frames)))
            if self._output_added is not None and not self._output_added.done():
                self._output_added.set_result(None)
            if len(output) > limits.output_frames:
                unread = limits.output_frames * frame_seconds
                self.stop(Reason.SLOW_CLIENT, f"more than {unread:.1f} s of the agent's audio were not read")
                return
            pcm = await user_frames.take()
            if pcm is None:
                self.stop(Reason.COMPLETED)
                return
            frame = await conversation.step(pcm, live=True)
            latency = max(clock() - user_frames.due_at, 0.0)
            metrics.input_to_output_seconds.observe(latency)
            if latency > frame_seconds:
                self._lease.record.late_frame(frame.index, latency)

    async def _write(self, transport: LiveTransport) -> None:
        """Send events in order, until and including Ended."""
        output = self._output
        while True:
            while not output:
                self._output_added = asyncio.get_running_loop().create_future()
                await self._output_added
            event = output.popleft()
            await transport.send(event)
            if type(event) is Ended:
                return

    async def _watch(self) -> None:
        """Enforce the limits on time, and check the engine while the client is silent."""
        await self._ready.wait()
        clock, limits, user_frames, metrics = self._clock, self._limits, self._input, self._runtime.metrics
        end_at = clock() + limits.duration
        warn_at = end_at - limits.warn
        while True:
            now = clock()
            idle_at = user_frames.last_at + limits.idle
            if now >= end_at:
                self.stop(Reason.MAX_DURATION, f"the call reached its longest duration of {limits.duration:g} s")
                return
            if now >= warn_at:
                left = end_at - now
                self._post(WarningEvent("max_duration", f"the call will end in {left:.0f} s", left))
                warn_at = end_at
            if now >= idle_at and not user_frames.frames and not user_frames.closed:
                self.stop(Reason.IDLE, f"no audio came for {limits.idle:g} s")
                return
            silent = now - user_frames.last_at >= _ENGINE_CHECK_S
            if self._on_gap == "wait" and silent and not await self._runtime.readiness.ready():
                self.stop(Reason.ENGINE, "the models are not available")
                return
            metrics.input_queue_frames.observe(len(user_frames.frames))
            now = clock()
            pause = min(warn_at - now, end_at - now, _ENGINE_CHECK_S)
            if idle_at > now:
                pause = min(pause, idle_at - now)
            await asyncio.sleep(max(pause, 0.001))

    def _post(self, event: Event) -> None:
        self._output.append(event)
        if self._output_added is not None and not self._output_added.done():
            self._output_added.set_result(None)

    def _count_losses(self) -> None:
        metrics, user_frames = self._metrics, self._input
        metrics.dropped_frames.inc(user_frames.dropped - self._counted_drops)
        metrics.gap_frames.inc(user_frames.gaps - self._counted_gaps)
        self._counted_drops, self._counted_gaps = user_frames.dropped, user_frames.gaps
        self._lease.record.dropped_frames = self._counted_drops

    def _summary(self) -> Summary:
        self._count_losses()
        return Summary(
            frames=self._frames,
            seconds=self._frames * self._frame_seconds,
            transcript="".join(self._texts).strip(),
            dropped_frames=self._counted_drops,
            late_frames=self._lease.record.late_frames,
        )


@asynccontextmanager
async def open_live_session(
    runtime: Runtime,
    persona: Persona,
    sampling: SamplingParams,
    caller: Caller,
    on_gap: OnGap = "wait",
    limits: LiveLimits | None = None,
    slot: Slot | None = None,
) -> AsyncIterator[LiveSession]:
    """Take a slot for a live session; release it on exit. Raises what `Leases.open` raises.

    `limits`: None for those of the settings. `slot`: reserved before; otherwise one is taken.
    """
    async with runtime.leases.open(persona, sampling, caller, slot) as lease:
        limits = limits or LiveLimits.of(runtime.settings)
        session = LiveSession(lease, runtime, persona, sampling, caller.api, on_gap, limits)
        with runtime.sessions.register(session, session.info):
            yield session


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
