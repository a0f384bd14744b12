"""Running sessions: the operator's list of them, and the drain that ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from gateway.session.admission import Admission
from gateway.session.session_info import SessionInfo
from gateway.settings import Settings

_LAST_MESSAGES_S = 3.0
"""Time for the last messages of the sessions that a drain ends."""


class Stoppable(Protocol):
    """A session that can be ended from outside."""

    def stop_for_drain(self) -> None:
        """End now: the drain time is over, or the operator ends the session."""


class Sessions:
    """Registry of the sessions of one gateway. A drain lets them continue for `settings.drain_seconds`."""

    def __init__(self, admission: Admission, settings: Settings) -> None:
        self._settings = settings
        self.end_waiting: Callable[[], Awaitable[None]] | None = None
        """Called first in a drain: ends sessions that no client is connected to."""
        self._admission = admission
        self._registered: dict[Stoppable, SessionInfo | None] = {}
        self._drain: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._stopping = False

    @contextmanager
    def register(self, session: Stoppable, info: SessionInfo | None = None) -> Iterator[None]:
        """Register `session` while inside: it is stopped when the drain time is over, listed if it has an `info`."""
        self._registered[session] = info
        try:
            yield
        finally:
            self._registered.pop(session, None)

    def running(self) -> list[SessionInfo]:
        """Sessions that hold a slot, oldest first. A turn in progress and its turn session are one."""
        by_id: dict[str, SessionInfo] = {}
        for info in self._registered.values():
            if info is not None:
                by_id.setdefault(info.id, info)
        return sorted(by_id.values(), key=lambda info: info.began)

    def end(self, session_id: str) -> bool:
        """End a session as a drain does; False if there is none with that id."""
        found = [live for live, info in self._registered.items() if info is not None and info.id == session_id]
        for session in found:
            session.stop_for_drain()
        return bool(found)

    @property
    def draining(self) -> bool:
        """Whether new conversations are refused."""
        return self._admission.draining

    def begin_drain(self) -> asyncio.Task[None]:
        """Refuse new conversations from now on; the task ends when all sessions have ended. Idempotent."""
        if self._drain is None:
            self._admission.draining = True
            self._drain = asyncio.create_task(self._end_all())
        return self._drain

    async def drain(self) -> None:
        """Drain because the server stops; this drain cannot be cancelled.

        Returns when all sessions have ended, or shortly after they were stopped.
        """
        self._stopping = True
        await asyncio.shield(self.begin_drain())

    def hurry_drain(self) -> None:
        """End the drain time now."""
        self._hurry.set()

    def cancel_drain(self) -> bool:
        """Accept new conversations again; False if the server is stopping. Sessions that have been ended stay ended."""
        if self._stopping:
            return False
        self._admission.draining = False
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        return True

    async def _end_all(self) -> None:
        if self.end_waiting is not None:
            await self.end_waiting()
        await self._until_empty(self._settings.drain_seconds, self._hurry)
        for session in list(self._registered):
            session.stop_for_drain()
        await self._until_empty(_LAST_MESSAGES_S)

    async def _until_empty(self, seconds: float, *others: asyncio.Event) -> None:
        """Wait until no slot is taken, one of the events is set, or the time is over."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._admission.empty, *others)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
