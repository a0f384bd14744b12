"""Live sessions: each holds its slot in a task of its own, which may outlive the connection that opened it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.engine.sampling import SamplingParams
from gateway.errors import UnknownConversation
from gateway.session.admission import Slot
from gateway.session.caller import Caller
from gateway.session.events import Reason, Resume
from gateway.session.leases import Leases
from gateway.session.limits import LiveLimits, OnGap
from gateway.session.live import NOT_RESUMABLE, LiveSession, Parts
from gateway.session.persona import Persona
from gateway.settings import Settings

NEW_TOKEN = "new"  # noqa: S105
"""In place of a resume token, a client that can resume a session sends this."""

_TOKEN_BYTES = 24


class LiveSessions:
    """Opens live sessions, and finds those that a client resumes."""

    def __init__(self, leases: Leases, settings: Settings, parts: Parts) -> None:
        self._leases = leases
        self._settings = settings
        self._parts = parts
        self._resumable: dict[str, LiveSession] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(
        self,
        persona: Persona,
        sampling: SamplingParams,
        caller: Caller,
        on_gap: OnGap = "wait",
        limits: LiveLimits | None = None,
        slot: Slot | None = None,
        token: str | None = None,
    ) -> AsyncIterator[LiveSession]:
        """Take a slot for a session, to be run inside. On exit a session that was not run ends.

        Args:
            limits: None for those of the settings.
            slot: reserved before; otherwise one is taken.
            token: NEW_TOKEN if the client can resume the session.

        Raises:
            GatewayError: what `Leases.open` raises.
        """
        limits = limits or LiveLimits.of(self._settings)
        seconds = self._settings.resume_seconds if token is not None else 0.0
        resume = Resume(secrets.token_urlsafe(_TOKEN_BYTES), seconds) if seconds else None
        opened: asyncio.Future[LiveSession] = asyncio.get_running_loop().create_future()

        async def live() -> None:
            session: LiveSession | None = None
            try:
                async with self._leases.open(persona, sampling, caller, slot) as lease:
                    session = LiveSession(lease, persona, sampling, caller, on_gap, limits, self._parts, resume)
                    if resume is not None:
                        self._resumable[resume.token] = session
                    with self._parts.sessions.register(session, session.info):
                        if not opened.cancelled():
                            opened.set_result(session)
                        await session.live()
            except Exception as error:
                # If the client has disconnected, no caller waits for the session.
                if not opened.done():
                    opened.set_exception(error)
                elif not opened.cancelled():
                    raise
            finally:
                if resume is not None:
                    self._resumable.pop(resume.token, None)
                if session is not None:
                    session.released.set()

        task = asyncio.create_task(live())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            session = await opened
        except asyncio.CancelledError:
            task.cancel()
            raise
        try:
            yield session
        finally:
            if not session.continues:
                session.stop(Reason.DISCONNECTED)
                await session.released.wait()

    def find(self, token: str | None, caller: Caller) -> LiveSession | None:
        """Return the session that `token` resumes; None without a token, or for NEW_TOKEN.

        Raises UnknownConversation, also for a session of another API or key.
        """
        if token is None or token == NEW_TOKEN:
            return None
        session = self._resumable.get(token)
        if session is None or session.caller.api is not caller.api or session.caller.key is not caller.key:
            raise UnknownConversation(NOT_RESUMABLE)
        return session

    def end_waiting(self) -> None:
        """End the sessions that wait for a connection; the server is about to stop."""
        for session in self._resumable.values():
            if session.waiting:
                session.stop_for_drain()

    async def close(self) -> None:
        """End all sessions, and wait for them."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
