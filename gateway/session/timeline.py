"""Where a live call is in time: when the caller's next frame is due, and what comes too early or too late."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from gateway.session.input_queue import InputQueue, UserFrame
from gateway.session.limits import LiveLimits


class Timeline:
    """A call's time since Ready. A frame's is over when it is heard or dropped, or with silence in its place."""

    def __init__(
        self, input_queue: InputQueue, frame_seconds: float, limits: LiveLimits, clock: Callable[[], float]
    ) -> None:
        self.ready_at = clock()
        self._input_queue = input_queue
        self._frame_seconds = frame_seconds
        self._limits = limits
        self._clock = clock
        self._began = self.ready_at - input_queue.head_start()
        self._heard = 0
        self._missed = 0
        self._refused = 0
        self._due_at = -inf

    @property
    def dropped(self) -> int:
        """The caller's frames that are never heard."""
        return self._input_queue.dropped + self._refused

    def due_in(self) -> float:
        """Seconds until the next user frame would be complete, had the caller spoken without a pause."""
        passed = self._heard + self._input_queue.dropped
        return self._began + (passed + 1) * self._frame_seconds - self._clock()

    def early(self) -> float:
        """Seconds to wait with the next frame, so that a caller who sends ahead does not take others' share."""
        speed, burst = self._limits.speed, self._limits.input_frames
        if speed == 0:
            return 0.0
        return (self._heard + 1 - burst) * self._frame_seconds / speed - (self._clock() - self._began)

    def hear(self) -> None:
        """A frame is heard: the caller's, or silence in its place."""
        self._heard += 1

    def miss(self) -> None:
        """Silence will be heard in place of a frame, which may yet come."""
        self._missed += 1

    def refuse(self) -> bool:
        """Whether a frame that came is not to be heard, for silence was heard in its place.

        So it was if hearing it and all that wait would bring the call ahead of real time. One frame of grace: what
        comes a little late is better heard.
        """
        grace = self._frame_seconds
        if not self._missed or self.due_in() + len(self._input_queue) * self._frame_seconds <= grace:
            return False
        self._missed -= 1
        self._refused += 1
        return True

    def asked_at(self, frame: UserFrame, free_at: float) -> float:
        """Since when the answer to a frame is waited for; `free_at`: when we were done with the one before.

        That is since the frame was complete, but for one that had to wait and was sent ahead of its time: since a
        frame's time after the one before. Nobody waits before Ready.
        """
        waited = frame.complete_at < free_at
        self._due_at = max(frame.complete_at, self._due_at + self._frame_seconds if waited else -inf)
        return max(self._due_at, self.ready_at)
