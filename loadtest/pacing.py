"""When a user sends: one frame per tick, late if necessary, never two at once."""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Awaitable, Callable

from loadtest.record import FRAME_SECONDS, Record

Clock = Callable[[], float]


class Pace:
    """A user's ticks: frame u is due at `start + u * 80 ms`, or later once the user has fallen behind."""

    def __init__(self, start: float) -> None:
        self.due = start

    def sent(self, at: float) -> None:
        """The due frame was sent at `at`; set `due` to the next tick."""
        following = self.due + FRAME_SECONDS
        # More than a tick behind, the next frame would follow this one at once: shift the schedule instead.
        self.due = following if at < following else at + FRAME_SECONDS


async def send_frames(
    record: Record, send: Callable[[int], Awaitable[None]], start: float, offset: float, until: float, clock: Clock
) -> None:
    """Send `record.expected` frames in real time from `start + offset` on and record when; stop at `until`.

    `send(u)` hands frame u to the transport and returns once the transport has accepted it.
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
        # Waiting for a transport that accepts no data is the server's delay, not the client's.
        record.late.append(max(0.0, now - max(pace.due, free)))
        await send(u)
        free = clock()
        if free - now > FRAME_SECONDS:
            record.blocked += free - now
        pace.sent(now)


class Start:
    """The common start: each user arrives or withdraws, then all arrived users get the same start time."""

    def __init__(self, parties: int, lead: float, clock: Clock, announce: Callable[[float], None]) -> None:
        """`lead`: seconds from the last arrival to the start. `announce` is called once with the start time."""
        self._missing = parties
        self._lead = lead
        self._clock = clock
        self._announce = announce
        self._moment: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        if not parties:
            self._set()

    async def arrive(self) -> float:
        """Wait for the others; return the start time."""
        self._one_less()
        return await asyncio.shield(self._moment)

    def withdraw(self) -> None:
        """Do not wait for this user."""
        self._one_less()

    def _one_less(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._set()

    def _set(self) -> None:
        moment = self._clock() + self._lead
        self._announce(moment)
        self._moment.set_result(moment)
