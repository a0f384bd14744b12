"""When a user sends: one frame per tick, late if necessary, never two at once."""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Awaitable, Callable

from loadtest.plan import Starts
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
    record: Record, send: Callable[[int], Awaitable[None]], start: float, until: float, clock: Clock
) -> None:
    """Send `record.expected` frames in real time from `start` on and record when; stop at `until`.

    `send(u)` hands frame u to the transport and returns once the transport has accepted it. If `record.expected`
    becomes smaller meanwhile, fewer are sent.
    """
    pace = Pace(start)
    free = 0.0
    u = 0
    while u < record.expected:
        wait = pace.due - clock()
        if wait > 0:
            await sleep(wait)
        now = clock()
        if now >= until or u >= record.expected:
            return
        record.sent.append(now - start)
        # Waiting for a transport that accepts no data is the server's delay, not the client's.
        record.late.append(max(0.0, now - max(pace.due, free)))
        await send(u)
        free = clock()
        if free - now > FRAME_SECONDS:
            record.blocked += free - now
        pace.sent(now)
        u += 1


class Start:
    """When calls begin to send: at once, or the first ones together once all of them are admitted."""

    def __init__(self, starts: Starts, lead: float, clock: Clock, announce: Callable[[], None]) -> None:
        """`lead`: seconds from the last arrival to a common start. `announce` is called once, before it."""
        self._lead = lead
        self._clock = clock
        self._announce = announce
        self._spread = starts == "spread"
        self._joined = self._missing = 0
        self._closed = False
        self._moment: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        if starts == "admitted":
            self.close()

    def join(self) -> int | None:
        """Return the number of a call that the others wait for; None if calls join no more."""
        if self._closed:
            return None
        self._joined += 1
        self._missing += 1
        return self._joined - 1

    def close(self) -> None:
        """No call joins any more."""
        if not self._closed:
            self._closed = True
            self._set_if_complete()

    async def arrive(self, number: int | None) -> float:
        """The call is admitted, whose `join` returned `number`. Wait for the start; return when it begins to send."""
        if self._moment.done():
            return self._clock()
        self.withdraw(number)
        moment = await asyncio.shield(self._moment)
        return moment + (FRAME_SECONDS * number / self._joined if self._spread and number is not None else 0.0)

    def withdraw(self, number: int | None) -> None:
        """Do not wait for the call whose `join` returned `number`."""
        if number is not None and not self._moment.done():
            self._missing -= 1
            self._set_if_complete()

    def _set_if_complete(self) -> None:
        if self._closed and not self._missing:
            self._announce()
            self._moment.set_result(self._clock() + self._lead)
