"""Shared frames: conversations that are ready at the same moment go through the four models together.

Left alone, conversations drift apart over the four stages of a frame and Triton's batches shrink to one. So a frame
is begun by a cohort: all who wait at that moment. Newcomers wait until the last of its members has left, and then
go together. Between two stages members meet again, so that each model sees all of them at once. Nobody is in two
cohorts at once, and a cohort costs nothing when there is one conversation. Where many take part the next one waits a
moment before it begins: an execution costs much by itself and little per member, so fewer and larger ones leave more
time for all. What is no frame but wants the same models, such as another caller's prompt, finds its time between two
cohorts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

logger = logging.getLogger(__name__)

MANY = 4
"""Members from which on a cohort's successor gathers before it begins."""


class Cohort:
    """`window`: seconds a cohort waits for others to join, if the last one had MANY members; `patience`: seconds after
    which it waits for no one.

    `observe` is told the size of every cohort.
    """

    def __init__(
        self, window: float = 0.0, patience: float = 2.0, observe: Callable[[int], None] = lambda members: None
    ) -> None:
        self._observe = observe
        self._window = window
        self._last = 0
        self._patience = patience
        self._waiting: list[asyncio.Future[SharedFrame]] = []
        self._between: list[asyncio.Future[None]] = []
        self._running: SharedFrame | None = None
        self._release: asyncio.Handle | None = None

    @asynccontextmanager
    async def frame(self) -> AsyncIterator[SharedFrame]:
        """Everything inside runs as part of one cohort."""
        turn: asyncio.Future[SharedFrame] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._schedule()
        try:
            running = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(turn.result())
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise
        try:
            yield running
        finally:
            self._leave(running)

    async def between(self) -> None:
        """Wait until the shared frame that is under way, if there is one, has ended."""
        if self._running is not None:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._between.append(ended)
            await ended

    def _schedule(self) -> None:
        if self._waiting and self._running is None and self._release is None:
            loop = asyncio.get_running_loop()
            # At least one turn of the loop, so that everyone who is about to ask has asked.
            wait = self._window if self._last >= MANY else 0.0
            self._release = loop.call_later(wait, self._go) if wait else loop.call_soon(self._go)

    def _go(self) -> None:
        self._release = None
        ready = [turn for turn in self._waiting if not turn.done()]
        if not ready:
            return
        self._waiting.clear()
        timer = asyncio.get_running_loop().call_later(self._patience, self._expire)
        self._running = SharedFrame(len(ready), timer)
        self._last = len(ready)
        self._observe(len(ready))
        for turn in ready:
            turn.set_result(self._running)

    def _leave(self, running: SharedFrame) -> None:
        if running.leave() and running is self._running:
            running.timer.cancel()
            self._end()

    def _expire(self) -> None:
        if self._running is not None:
            logger.warning("a shared frame took over %.1f s; %d left behind", self._patience, self._running.members)
            self._running.dissolve()
            self._end()

    def _end(self) -> None:
        self._running = None
        for waiting in self._between:
            if not waiting.done():
                waiting.set_result(None)
        self._between.clear()
        self._schedule()


class SharedFrame:
    """One frame's cohort: who is still in it, and who already waits at the next stage."""

    def __init__(self, members: int, timer: asyncio.TimerHandle) -> None:
        self.members = members
        self.timer = timer
        self._arrived: list[asyncio.Future[None]] = []
        self._dissolved = False

    async def meet(self) -> None:
        """Wait until every member still in the frame has come this far."""
        if self.members == 1 or self._dissolved:
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

    def leave(self) -> bool:
        """One member less; whether it was the last."""
        self.members -= 1
        self._go_on_if_complete()
        return self.members == 0

    def dissolve(self) -> None:
        """Nobody waits for anybody any more."""
        self._dissolved = True
        self._go_on()

    def _go_on_if_complete(self) -> None:
        if len(self._arrived) >= self.members:
            self._go_on()

    def _go_on(self) -> None:
        for waiting in self._arrived:
            if not waiting.done():
                waiting.set_result(None)
        self._arrived.clear()
