"""A live session: runs one conversation, frame by frame, over a client's connection, and enforces the time limits.

Three tasks share the work of a frame. The transport's reader puts samples into the input queue. The frame loop takes
user frames, passes them to the engine and queues agent frames. The writer sends them. A fourth task wakes about once a
second and checks the limits. The first of them that ends the session gives the reason.

The frame loop and the limits belong to the session, reader and writer to a connection. A resumable session whose
connection is lost continues with silence for a time, in which another connection may resume it. The agent's audio of
that time is not sent later: it would delay the agent for the rest of the call. Its text is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Protocol

from gateway.engine.sampling import SamplingParams
from gateway.errors import GatewayError, TakenOver, UnknownConversation
from gateway.manifest import Manifest
from gateway.session.caller import Caller
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason, Resume, Summary, WarningEvent
from gateway.session.input_queue import InputQueue
from gateway.session.leases import ConversationLease
from gateway.session.limits import LiveLimits, OnGap
from gateway.session.persona import Persona
from gateway.session.readiness import Readiness
from gateway.session.session_info import SessionInfo
from gateway.session.sessions import Sessions
from gateway.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# While a client is silent no frame shows that the engine is gone, so check it this often.
_ENGINE_CHECK_S = 1.0
# Time for the client to read what is queued when the session ends.
_FLUSH_S = 1.0
# When sending fails, the reader knows this soon whether the client has closed the connection.
_CLOSE_S = 0.1

NOT_RESUMABLE = "no session to resume: it has ended, its time is over, or it belongs to another API or key"

_MESSAGES = {
    Reason.COMPLETED: "the conversation is over",
    Reason.DISCONNECTED: "the connection was lost",
    Reason.DRAINED: "the server is shutting down",
}


class TransportClosed(Exception):  # noqa: N818 (a client may disconnect at any time)
    """The client has disconnected. `hung_up`: whether it closed the connection itself; None if that is not known."""

    def __init__(self, hung_up: bool | None = None) -> None:
        super().__init__()
        self.hung_up = hung_up


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


@dataclass(frozen=True, slots=True)
class Parts:
    """What live sessions need of the server."""

    manifest: Manifest
    metrics: Metrics
    readiness: Readiness
    sessions: Sessions
    clock: Callable[[], float] = monotonic


class LiveSession:
    """One live conversation. Made by `LiveSessions.open`."""

    def __init__(
        self,
        lease: ConversationLease,
        persona: Persona,
        sampling: SamplingParams,
        caller: Caller,
        on_gap: OnGap,
        limits: LiveLimits,
        parts: Parts,
        resume: Resume | None = None,
    ) -> None:
        """`resume`: None if the session ends with its connection."""
        self.id = lease.record.id
        self.caller = caller
        self.memo: Any = None
        """What the API needs to know of the session to continue it over another connection."""
        self.ended: Ended
        """What ended the session; set before `released`."""
        self.released = asyncio.Event()
        """Set by the owner of the lease: the session has ended and its slot is free."""
        self._lease = lease
        self._parts = parts
        self._metrics = parts.metrics.of[caller.api]
        self._voice = persona.voice_name
        self._seed = sampling.seed
        self._limits = limits
        self._resume = resume
        self._clock = parts.clock
        self._frame_seconds = 1 / parts.manifest.frame_rate
        self._on_gap = on_gap
        self._input = self._taken = self._new_input(on_gap, limits)
        self._output: asyncio.Queue[Event] = asyncio.Queue()
        self._ready: Ready | None = None
        self._started = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._end: asyncio.Future[tuple[Reason, str, GatewayError | None]] = loop.create_future()
        self._connection: asyncio.Future[None] | None = None
        """Done when the latest connection is lost, or another one has replaced it."""
        self._expiry: asyncio.TimerHandle | None = None
        """Runs while no client is connected."""
        self._missed: list[str] = []
        self._missed_from = 0
        self._frames = 0
        self._texts: list[str] = []
        self._counted_drops = 0
        self._counted_gaps = 0

    @property
    def info(self) -> SessionInfo:
        """The session as an operator sees it."""
        return SessionInfo(self.id, "live", self.caller.api, self._voice)

    @property
    def continues(self) -> bool:
        """Whether the session has been run and has not ended."""
        return self._connection is not None and not self._end.done()

    @property
    def waiting(self) -> bool:
        """Whether the session has lost its connection and waits for another one."""
        return self._expiry is not None and not self._end.done()

    def stop(self, reason: Reason, message: str | None = None, error: GatewayError | None = None) -> None:
        """End the session now. The first reason counts."""
        if not self._end.done():
            self._end.set_result((reason, message or _MESSAGES.get(reason, reason.value), error))

    def stop_for_drain(self) -> None:
        """End the session because the drain time of the server is over."""
        self.stop(Reason.DRAINED)

    @property
    def frames(self) -> int:
        """Agent frames so far."""
        return self._frames

    def say(self, words: list[list[int]]) -> None:
        """Have the agent say words, each of them text tokens, from now on."""
        self._lease.conversation.say(words)

    async def live(self) -> None:
        """Run the frame loop and enforce the limits until the session ends. Called once, by the owner of the lease."""
        work = [asyncio.create_task(part) for part in (self._converse(), self._watch())]
        for task in work:
            task.add_done_callback(self._task_done)
        try:
            await asyncio.wait([self._end])
        finally:
            if self._expiry is not None:
                self._expiry.cancel()
            self._input.close()
            await _cancel(work)
            self.stop(Reason.DISCONNECTED)
            reason, message, error = self._end.result()
            self._lease.reason = reason.value
            self.ended = Ended(reason, message, self._summary(), error)
            if reason is not Reason.DISCONNECTED:
                self._output.put_nowait(self.ended)

    async def run(self, transport: LiveTransport, on_gap: OnGap | None = None) -> Ended:
        """Serve a client until the session ends, and send Ended unless the client has disconnected.

        Returns when the slot is free, or when the connection is lost and the session continues without it.

        Args:
            transport: the connection: the first one, or one that resumes the session.
            on_gap: gap policy from now on; None: that of the session.

        Raises:
            UnknownConversation: the session has ended already.
            TakenOver: another connection has resumed the session.
        """
        if self._end.done():
            raise UnknownConversation(NOT_RESUMABLE)
        if self._connection is not None:
            self._reconnect(on_gap or self._on_gap)
        self._connection = connection = asyncio.get_running_loop().create_future()
        reader = asyncio.create_task(transport.receive(self._input))
        writer = asyncio.create_task(self._write(transport, self._output))
        for task in (reader, writer):
            task.add_done_callback(partial(self._task_done, connection=connection))
        try:
            await asyncio.wait([self._end, connection], return_when=asyncio.FIRST_COMPLETED)
            if connection.done():
                connection.result()
                return Ended(Reason.DISCONNECTED, _MESSAGES[Reason.DISCONNECTED], self._summary())
            await _cancel([reader])
            if self._end.result()[0] is not Reason.DISCONNECTED:
                await asyncio.wait([writer], timeout=_FLUSH_S)
            if not writer.done():
                transport.abort()
            await self.released.wait()
            return self.ended
        except BaseException as error:
            self._lose(connection, hung_up=not isinstance(error, asyncio.CancelledError))
            raise
        finally:
            await _cancel([reader, writer])

    def _task_done(self, task: asyncio.Task[None], connection: asyncio.Future[None] | None = None) -> None:
        """End the session if one of its tasks failed; `connection` for a task of a connection, which may be lost."""
        if task.cancelled() or (error := task.exception()) is None or (connection is not None and connection.done()):
            return
        if isinstance(error, TransportClosed) and connection is not None:
            if self._resume is None or error.hung_up is not None:
                self._lose(connection, hung_up=bool(error.hung_up))
            else:
                asyncio.get_running_loop().call_later(_CLOSE_S, self._lose, connection)
        elif isinstance(error, GatewayError):
            self.stop(Reason(error.end_reason), error.message, error)
        else:
            logger.error("conversation %s failed", self.id, exc_info=error)
            self.stop(Reason.ERROR, "internal error")

    def _lose(self, connection: asyncio.Future[None], *, hung_up: bool = False) -> None:
        """Continue without the connection if the session is resumable, or else end."""
        if connection.done() or self._end.done():
            return
        over = hung_up or self._ready is None or self._input.closed or self._parts.sessions.draining
        if self._resume is None or over:
            self.stop(Reason.DISCONNECTED)
            return
        connection.set_result(None)
        self._keep_texts()
        self._replace_input(self._new_input("silence", self._limits))
        self._expiry = asyncio.get_running_loop().call_later(self._resume.seconds, self.stop, Reason.DISCONNECTED)
        self._metrics.connections_lost.inc()
        logger.info("conversation %s lost its connection and waits for another one", self.id)

    def _reconnect(self, on_gap: OnGap) -> None:
        """Continue with another connection: with its audio from now on, and with what the agent says from now on."""
        assert self._connection is not None and self._ready is not None  # noqa: S101, PT018 (it has been run)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        else:
            self._connection.set_exception(TakenOver("another connection has resumed this session"))
            self._keep_texts()
        self._output = asyncio.Queue()
        self._replace_input(self._new_input(on_gap, self._limits.resumed()))
        text = "".join(self._missed)
        self._output.put_nowait(
            replace(self._ready, index=self._frames, missed_text=text, missed_from=self._missed_from)
        )
        self._metrics.resumed.inc()
        logger.info("conversation %s resumed", self.id)

    def _keep_texts(self) -> None:
        """Replace what is not sent by its text."""
        events = [self._output.get_nowait() for _ in range(self._output.qsize())]
        self._missed = [event.frame.text for event in events if isinstance(event, AgentAudio)]
        self._missed_from = self._frames - len(self._missed)

    def _new_input(self, on_gap: OnGap, limits: LiveLimits) -> InputQueue:
        manifest = self._parts.manifest
        return InputQueue(manifest.frame_size, self._frame_seconds, limits, on_gap, self._clock)

    def _replace_input(self, queue: InputQueue) -> None:
        """Take user frames from another queue, once those that wait have been used."""
        self._input, before = queue, self._input
        queue.dropped, queue.gaps = before.dropped, before.gaps
        before.close()

    async def _converse(self) -> None:
        """Run the frame loop, from the prompt to the answer to the last user frame."""
        clock, conversation = self._clock, self._lease.conversation
        metrics, limits, frame_seconds = self._metrics, self._limits, self._frame_seconds
        began, traced = clock(), self._lease.record.frame_interval
        frame = await conversation.start()
        prompt_steps = conversation.prefix.length if conversation.prefix else 0
        self._ready = Ready(self.id, self._voice, self._seed, clock() - began, prompt_steps, resume=self._resume)
        self._output.put_nowait(self._ready)
        self._input.start()
        self._started.set()
        latency = 0.0
        while True:
            user_frames = self._input
            self._frames += 1
            if frame.text:
                self._texts.append(frame.text)
            if user_frames.dropped != self._counted_drops or user_frames.gaps != self._counted_gaps:
                self._count_losses()
            if self._expiry is not None:
                self._missed.append(frame.text)
            else:
                output = self._output
                output.put_nowait(AgentAudio(frame, latency, user_frames.dropped, len(user_frames.frames)))
                if output.qsize() > limits.output_frames:
                    unread = limits.output_frames * frame_seconds
                    self.stop(Reason.SLOW_CLIENT, f"more than {unread:.1f} s of the agent's audio were not read")
                    return
            while (pcm := await self._taken.take()) is None and self._taken is not self._input:
                # What follows is the audio of another connection, or silence until there is one.
                self._taken = self._input
                self._taken.start()
            if pcm is None:
                self.stop(Reason.COMPLETED)
                return
            due_at = self._taken.due_at
            frame = await conversation.step(pcm, live=True)
            latency = max(clock() - due_at, 0.0)
            metrics.input_to_output_seconds.observe(latency)
            if latency > frame_seconds:
                self._lease.record.late_frame(frame.index, latency)
            if traced and frame.index % traced == 0:
                self._lease.record.frame(frame, latency)

    async def _write(self, transport: LiveTransport, output: asyncio.Queue[Event]) -> None:
        """Send events in order, until and including Ended."""
        while True:
            event = await output.get()
            await transport.send(event)
            if type(event) is Ended:
                return

    async def _watch(self) -> None:
        """Enforce the limits on time, and check the engine while the client is silent."""
        await self._started.wait()
        clock, limits, parts = self._clock, self._limits, self._parts
        end_at = clock() + limits.duration
        warn_at = end_at - limits.warn
        while True:
            now, user_frames = clock(), self._input
            # A session without a connection has a time limit of its own.
            idle_at = user_frames.last_at + limits.idle if self._expiry is None else inf
            if now >= end_at:
                self.stop(Reason.MAX_DURATION, f"the call reached its longest duration of {limits.duration:g} s")
                return
            if now >= warn_at:
                left = end_at - now
                self._output.put_nowait(WarningEvent("max_duration", f"the call will end in {left:.0f} s", left))
                warn_at = end_at
            if now >= idle_at and not user_frames.frames and not user_frames.closed:
                self.stop(Reason.IDLE, f"no audio came for {limits.idle:g} s")
                return
            silent = now - user_frames.last_at >= _ENGINE_CHECK_S
            if self._on_gap == "wait" and silent and not await parts.readiness.ready():
                self.stop(Reason.ENGINE, "the models are not available")
                return
            parts.metrics.input_queue_frames.observe(len(user_frames.frames))
            now = clock()
            pause = min(warn_at - now, end_at - now, _ENGINE_CHECK_S)
            if idle_at > now:
                pause = min(pause, idle_at - now)
            await asyncio.sleep(max(pause, 0.001))

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


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
