"""Shared frames: conversations that are ready at the same moment go through the four models together.

Left alone, conversations drift apart over the four stages of a frame and batches shrink to one. So a frame is begun by
a cohort: all who wait at that moment. Between two stages members meet again, so that each model sees all of them at
once; nobody is in two cohorts at once, and a cohort costs nothing when there is one conversation. An execution costs
much by itself and little per member, so fewer and larger ones leave more time for all.

Newcomers wait until the cohort before them has given way. It does so when it is through the temporal model, if what is
left of its frame then is worth overlapping; else at its end, so that its members, if they are late, go with the next.
What is no frame but wants the temporal model, such as another caller's prompt, finds its time at the same moments.

Live callers come at moments of their own, every 80 ms: where many take part the next cohort waits a moment for others
before it begins, and it may begin beside the one before, which shortens everybody's wait. Recordings have their next
frame ready as soon as the last one is answered: while nobody is live they go when the cohort before has ended, all of
them, and at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter

logger = logging.getLogger(__name__)

MANY = 4
"""Members from which on a cohort's successor gathers before it begins."""

LIVE_SECONDS = 1.0
"""After this long without a frame of a live caller, who has one every 80 ms, nobody is live."""

TAIL = 1 / 3
"""Of a frame's time, what its stages behind the temporal model must take for the next one to begin beside them.

Where they take half, as with small models or on a GPU, two frames under way shorten everybody's wait. Where nearly all
is the temporal model's, which reads its weights once however many take part, one frame for all is faster than two for
half each."""


class Cohort:
    """`window`: seconds a cohort waits for others to join, if the last one had MANY members and somebody is live;
    `patience`: seconds after which it waits for no one.

    `observe` is told the size of every cohort.
    """

    def __init__(
        self, window: float = 0.0, patience: float = 2.0, observe: Callable[[int], None] = lambda members: None
    ) -> None:
        self._observe = observe
        self._window = window
        self._last = 0
        self._live_until = 0.0
        self._tail = 0.0
        self._patience = patience
        self._waiting: list[asyncio.Future[SharedFrame]] = []
        self._between: list[asyncio.Future[None]] = []
        self._ahead: SharedFrame | None = None
        """The frame that has not given way yet."""
        self._under_way = 0
        self._release: asyncio.Handle | None = None

    @asynccontextmanager
    async def frame(self, live: bool = True) -> AsyncIterator[SharedFrame]:
        """Everything inside runs as part of one cohort. `live`: somebody waits for it as it is spoken."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[SharedFrame] = loop.create_future()
        if live:
            self._live_until = loop.time() + LIVE_SECONDS
        self._waiting.append(turn)
        self._schedule()
        try:
            shared = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(turn.result())
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise
        try:
            yield shared
        finally:
            self._leave(shared)

    async def between(self) -> None:
        """Wait until the shared frame that is under way, if there is one, has given way."""
        if self._ahead is not None:
            free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._between.append(free)
            await free

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        live = loop.time() < self._live_until
        most = 2 if live else 1
        if self._waiting and self._ahead is None and self._under_way < most and self._release is None:
            # At least one turn of the loop, so that everyone who is about to ask has asked.
            wait = self._window if live and self._last >= MANY else 0.0
            self._release = loop.call_later(wait, self._go) if wait else loop.call_soon(self._go)

    def _go(self) -> None:
        self._release = None
        ready = [turn for turn in self._waiting if not turn.done()]
        if not ready:
            return
        self._waiting.clear()
        shared = SharedFrame(len(ready), self._give_way)
        shared.timer = asyncio.get_running_loop().call_later(self._patience, self._expire, shared)
        self._ahead = shared
        self._under_way += 1
        self._last = len(ready)
        self._observe(len(ready))
        for turn in ready:
            turn.set_result(shared)

    def _give_way(self, shared: SharedFrame) -> None:
        """Its members need the temporal model no more."""
        if shared is self._ahead and self._tail >= TAIL:
            self._free()

    def _leave(self, shared: SharedFrame) -> None:
        if shared.leave() and not shared.dissolved:
            shared.timer.cancel()
            if (tail := shared.tail) is not None:
                self._tail += 0.1 * (tail - self._tail)
            self._end(shared)

    def _expire(self, shared: SharedFrame) -> None:
        logger.warning("a shared frame took over %.1f s; %d left behind", self._patience, shared.members)
        shared.dissolve()
        self._end(shared)

    def _end(self, shared: SharedFrame) -> None:
        self._under_way -= 1
        if shared is self._ahead:
            self._free()
        else:
            self._schedule()

    def _free(self) -> None:
        self._ahead = None
        for waiting in self._between:
            if not waiting.done():
                waiting.set_result(None)
        self._between.clear()
        self._schedule()


class SharedFrame:
    """One frame's cohort: who is still in it, and who already waits at the next stage."""

    timer: asyncio.TimerHandle

    def __init__(self, members: int, give_way: Callable[[SharedFrame], None]) -> None:
        self.members = members
        self.dissolved = False
        self._give_way = give_way
        self._arrived: list[asyncio.Future[None]] = []
        self._began = perf_counter()
        self._gave_way: float | None = None

    @property
    def tail(self) -> float | None:
        """What share of its time until now has passed since it gave way; None if it has not."""
        if self._gave_way is None:
            return None
        now = perf_counter()
        return (now - self._gave_way) / (now - self._began)

    async def meet(self) -> None:
        """Wait until every member still in the frame has come this far."""
        if self.members == 1 or self.dissolved:
            return
        here: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrived.append(here)
        self._go_on_if_complete()
        try:
            await here
        except asyncio.CancelledError:
            if here in self._arrived:
                self._arrived.remove(here)
            raise

    def give_way(self) -> None:
        """All members are through the temporal model, says the first of them: the next frame may begin."""
        if self._gave_way is None:
            self._gave_way = perf_counter()
            self._give_way(self)

    def leave(self) -> bool:
        """One member less; whether it was the last."""
        self.members -= 1
        self._go_on_if_complete()
        return self.members == 0

    def dissolve(self) -> None:
        """Nobody waits for anybody any more."""
        self.dissolved = True
        self._go_on()

    def _go_on_if_complete(self) -> None:
        if len(self._arrived) >= self.members:
            self._go_on()

    def _go_on(self) -> None:
        for waiting in self._arrived:
            if not waiting.done():
                waiting.set_result(None)
        self._arrived.clear()
