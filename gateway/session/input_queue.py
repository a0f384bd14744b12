"""The client's audio on its way to the engine: cut into frames, bounded, and released at the right time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic

import numpy as np

from gateway.audio.samples import Floats
from gateway.session.limits import LiveLimits, OnGap

# Event loops round timers to milliseconds.
_TIMER_S = 0.001


class InputQueue:
    """A bounded queue of user frames. A transport puts samples, the frame loop of the session takes frames.

    A full queue has one of two causes. If the client has sent more audio than time has passed, it is ahead: `put`
    waits, and the transport's flow control slows the client down. Otherwise the client sends in real time and the
    server is too slow: the oldest frame is dropped and counted, so that the conversation stays in the present. A pause
    counts only for as much audio as fits in the queue, so that a long burst after a pause is ahead and loses nothing.

    `start` begins the timeline of the conversation. From then on `take` releases frames no faster than the speed limit
    and, with the gap policy "silence", inserts silence for frames that do not arrive in time.
    """

    def __init__(
        self,
        frame_size: int,
        frame_seconds: float,
        limits: LiveLimits,
        on_gap: OnGap = "wait",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._frame_size = frame_size
        self._frame_seconds = frame_seconds
        self._capacity = limits.input_frames
        # Seconds between two frames at the speed limit; 0 without a limit.
        self._spacing = frame_seconds / limits.speed if limits.speed else 0.0
        self._lead = limits.lead_frames
        self._early = limits.early_frames
        self._burst = limits.burst
        self._fill_gaps = on_gap == "silence"
        self._clock = clock
        self._silence = np.zeros(frame_size, np.float32)
        self._rest = np.empty(0, np.float32)
        self._arrived: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._received = 0
        self._overflowed = 0
        self._released = 0
        self._missed = 0
        # The client's clock: the time of its first sample, moved forward by pauses.
        self._input_from = clock()
        # The timeline: when the conversation started, and when its first user frame began.
        self._started_at = self._output_from = -inf
        self._next_due_at = self._burst_until = -inf

        self.frames: deque[tuple[Floats, float]] = deque()
        """Frames that wait: samples [1920] float32, and the time at which the frame was complete."""
        self.closed = False
        self.last_at = clock()
        """When audio arrived last."""
        self.due_at = -inf
        """The time from which the latency of the frame taken last counts."""
        self.dropped = 0
        """User frames that the engine does not get: the queue was full, or they were too early or too late."""
        self.gaps = 0
        """Frames of silence inserted for missing audio."""

    async def put(self, pcm: Floats) -> None:
        """Add samples [T] float32; return once there is room for them. Samples after `close` are ignored."""
        if self.closed or not len(pcm):
            return
        self.last_at = now = self._clock()
        if len(self._rest):
            pcm = np.concatenate([self._rest, pcm])
        elif not self._received:
            self._input_from = now
        size, frames = self._frame_size, self.frames
        end = len(pcm) - len(pcm) % size
        self._rest = pcm[end:]
        for start in range(0, end, size):
            behind = (self._received + self._capacity - 2) * self._frame_seconds
            self._input_from = max(self._input_from, now - behind)
            if now < self._burst_until and len(frames) >= self._early:
                frames.popleft()
                self.dropped += 1
            while len(frames) >= self._capacity and not self.closed:
                # One frame of tolerance, because the clocks of client and server drift.
                if self._received <= (now - self._input_from) / self._frame_seconds + 1:
                    frames.popleft()
                    self._overflowed += 1
                    self.dropped += 1
                else:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
                    now = self._clock()
            if self.closed:
                return  # type: ignore[unreachable]  # closed while `put` waited
            self._received += 1
            # A client that is slowed down is not idle.
            self.last_at = now
            frames.append((pcm[start : start + size], now))
            if self._arrived is not None and not self._arrived.done():
                self._arrived.set_result(None)

    def close(self) -> None:
        """End the input. An incomplete frame is padded with silence."""
        if self.closed:
            return
        self.closed = True
        if len(self._rest):
            padded = np.zeros(self._frame_size, np.float32)
            padded[: len(self._rest)] = self._rest
            self.frames.append((padded, self._clock()))
            self._rest = self._rest[:0]
        self._wake()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def start(self) -> None:
        """Begin the timeline now: the models hold the prompt. Audio that arrived before counts as a head start.

        If the client sends in real time, audio older than the limit `early_frames` is dropped, as if the client had
        begun to send later. A client that is ahead sends a recording, of which nothing is stale.
        """
        now = self._clock()
        waits = self._room is not None and not self._room.done()
        ahead = waits or self._received > (now - self._input_from) / self._frame_seconds + 1
        late = 0 if ahead else max(len(self.frames) - self._early, 0)
        for _ in range(late):
            self.frames.popleft()
        self.dropped += late
        self._received -= late
        self._input_from += late * self._frame_seconds
        self._burst_until = now + self._burst
        self._started_at = self.last_at = now
        self._output_from = self._started_at - self.head_start()

    def head_start(self) -> float:
        """Return the seconds of audio so far, but not more than the time since the client's first sample."""
        audio = self._received + len(self._rest) / self._frame_size
        return min(audio * self._frame_seconds, self._clock() - self._input_from + self._frame_seconds)

    async def take(self) -> Floats | None:
        """Return the next user frame [1920] float32, or None once the queue is closed and empty. For one reader.

        Sets `due_at`: the time at which the frame was complete; for a frame that was sent ahead of its time and had to
        wait, one frame after the previous one; never before `start`.
        """
        clock, frames, frame_seconds = self._clock, self.frames, self._frame_seconds
        if self._spacing:
            early = self._output_from + (self._released + 1 - self._lead) * self._spacing - clock()
            if early > 0:
                await asyncio.sleep(early)
        free_at = clock()
        while True:
            if frames:
                pcm, complete_at = frames.popleft()
                if self._room is not None and not self._room.done():
                    self._room.set_result(None)
                if self._missed:
                    # Silence took the place of an earlier frame. Drop this frame if the session would get ahead of real
                    # time. One frame of tolerance, because audio that is only a little late is better used.
                    passed = self._released + self._overflowed + 1 + len(frames)
                    if self._output_from + passed * frame_seconds - clock() > frame_seconds:
                        self._missed -= 1
                        self.dropped += 1
                        continue
                break
            if self.closed:
                return None
            self._arrived = arrived = asyncio.get_running_loop().create_future()
            if not self._fill_gaps:
                await arrived
                continue
            missing_at = self._output_from + (self._released + self._overflowed + 2) * frame_seconds
            wait = missing_at - clock()
            if wait <= 0:
                pcm, complete_at = self._silence, clock()
                self._missed += 1
                self.gaps += 1
                break
            timer = asyncio.get_running_loop().call_later(max(wait, _TIMER_S), self._wake)
            await arrived
            timer.cancel()
        self._released += 1
        waited = complete_at < free_at
        self._next_due_at = max(complete_at, self._next_due_at + frame_seconds if waited else -inf)
        self.due_at = max(self._next_due_at, self._started_at)
        return pcm

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
