"""When a caller speaks: one frame per tick, late if it must be, never two at once."""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Awaitable, Callable

from loadtest.record import FRAME_SECONDS, Record

Clock = Callable[[], float]


class Pace:
    """A caller's ticks: frame u is due at `start + u * 80 ms`, or later once the caller has fallen behind."""

    def __init__(self, start: float) -> None:
        self.due = start

    def spoke(self, at: float) -> None:
        """The frame that was due went out at `at`; moves `due` on to the next one."""
        following = self.due + FRAME_SECONDS
        # More than a whole tick behind, the next frame would follow on this one's heels: the ticks move instead.
        self.due = following if at < following else at + FRAME_SECONDS


async def speak(
    record: Record, send: Callable[[int], Awaitable[None]], start: float, offset: float, until: float, clock: Clock
) -> None:
    """Send `record.expected` frames in real time from `start + offset` on, noting down when; stops at `until`.

    `send(u)` hands frame u to the transport and returns once it has been taken.
    """
    pace = Pace(start + offset)
    free = 0.0
    for u in range(record.expected):
        wait = pace.due - clock()
        if wait > 0:
            await sleep(wait)
        now = clock()
        if now >= until + offset:
            return
        record.sent.append(now - start)
        # Waiting for a transport that takes nothing is the server's doing, not this client's lateness.
        record.late.append(max(0.0, now - max(pace.due, free)))
        await send(u)
        free = clock()
        if free - now > FRAME_SECONDS:
            record.held += free - now
        pace.spoke(now)


class Start:
    """The common start: everybody either arrives or leaves; then one moment is told to those who arrived."""

    def __init__(self, parties: int, lead: float, clock: Clock, announce: Callable[[float], None]) -> None:
        """`lead`: seconds from the last arrival to the start. `announce` is told the moment once."""
        self._missing = parties
        self._lead = lead
        self._clock = clock
        self._announce = announce
        self._moment: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        if not parties:
            self._tell()

    async def arrive(self) -> float:
        """Wait for the others; the moment to start at."""
        self._one_less()
        return await asyncio.shield(self._moment)

    def leave(self) -> None:
        """Not to be waited for."""
        self._one_less()

    def _one_less(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._tell()

    def _tell(self) -> None:
        moment = self._clock() + self._lead
        self._announce(moment)
        self._moment.set_result(moment)
