"""The caller's audio on its way in: cut into frames, bounded, oldest out first, and ahead of time only so far."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gateway.engine.backend import Floats


@dataclass(frozen=True, slots=True, eq=False)
class UserFrame:
    """80 ms of the caller: pcm [1920] float32, and the moment it was complete (on the inbox's clock)."""

    pcm: Floats
    complete_at: float


class InputQueue:
    """A bounded queue of user frames between a face, which puts samples, and the frame loop, which takes frames.

    A full inbox means one of two things. A caller who has sent more audio than time has passed is ahead: `put` waits,
    and the transport's own flow control holds them back. One who has not is live, and we do not keep up: then the
    oldest frame is dropped and counted, so that the conversation stays in the present. Of the time in which nothing was
    sent only so much counts as fits in here: what is sent at once after a pause is ahead, too, and not dropped.
    """

    def __init__(self, frame_size: int, frame_seconds: float, capacity: int, clock: Callable[[], float]) -> None:
        self._frame_size = frame_size
        self._frame_seconds = frame_seconds
        self._capacity = capacity
        self._clock = clock
        self._rest = np.empty(0, np.float32)
        self._frames: deque[UserFrame] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False
        self._began = clock()
        self._received = 0
        self.last_at = clock()
        """When audio last came."""
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def closed(self) -> bool:
        return self._closed

    async def put(self, pcm: Floats) -> None:
        """Add samples [T] float32 at 24 kHz; returns when there is room for them. After `close` they are ignored."""
        self.last_at = self._clock()
        if not self._received and not len(self._rest):
            self._began = self.last_at
        joined = np.concatenate([self._rest, pcm])
        whole = len(joined) // self._frame_size * self._frame_size
        self._rest = joined[whole:]
        for start in range(0, whole, self._frame_size):
            await self._add(joined[start : start + self._frame_size])

    def close(self) -> None:
        """No more audio will come: what is left of a frame is padded with silence."""
        if self._closed:
            return
        self._closed = True
        if len(self._rest):
            padded = np.zeros(self._frame_size, np.float32)
            padded[: len(self._rest)] = self._rest
            self._frames.append(UserFrame(padded, self._clock()))
            self._rest = self._rest[:0]
        self._arrived.set()
        self._room.set()

    async def take(self) -> UserFrame | None:
        """The oldest frame, once there is one; None when the inbox is closed and empty. For one reader."""
        while not self._frames:
            if self._closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        self._room.set()
        return self._frames.popleft()

    def head_start(self) -> float:
        """Seconds of the audio so far, as much of it as can have been spoken since the first came."""
        audio = self._received + len(self._rest) / self._frame_size
        return min(audio * self._frame_seconds, self._clock() - self._began + self._frame_seconds)

    async def _add(self, pcm: Floats) -> None:
        self._forget_pause()
        while len(self._frames) >= self._capacity and self._ahead() and not self._closed:
            self._room.clear()
            await self._room.wait()
        if self._closed:
            return
        if len(self._frames) >= self._capacity:
            self._frames.popleft()
            self.dropped += 1
        self._received += 1
        # Again: who is held back is not idle.
        self.last_at = self._clock()
        self._frames.append(UserFrame(pcm, self.last_at))
        self._arrived.set()

    def _forget_pause(self) -> None:
        """Let a caller be behind time by no more than can be sent at once, without being ahead, into an empty inbox."""
        behind = (self._received + self._capacity - 2) * self._frame_seconds
        self._began = max(self._began, self._clock() - behind)

    def _ahead(self) -> bool:
        """Whether the caller has sent more than could have been spoken since they began.

        One frame of grace: a live caller's clock and ours do not tick together.
        """
        return self._received > (self._clock() - self._began) / self._frame_seconds + 1
