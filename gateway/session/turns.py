"""Turn sessions: conversations that continue over several REST requests, with the same state in the models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

from gateway.engine.sampling import SamplingParams
from gateway.errors import ConversationBusy, UnknownConversation
from gateway.session.admission import Slot
from gateway.session.caller import Caller
from gateway.session.keys import KeyHolder
from gateway.session.leases import ConversationLease, Leases
from gateway.session.persona import Persona
from gateway.session.session_info import SessionInfo
from gateway.session.sessions import Sessions


class TurnSession:
    """A conversation of several turns. It holds a slot from its first turn until it ends."""

    def __init__(self, sessions: TurnSessions, persona: Persona, sampling: SamplingParams, caller: Caller) -> None:
        self.id = str(uuid4())
        self.persona = persona
        self.sampling = sampling
        self.caller = caller
        self._sessions = sessions
        self._resources = AsyncExitStack()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._lease: ConversationLease | None = None
        self._began = 0.0

    @property
    def info(self) -> SessionInfo:
        """Description for the operator API."""
        return SessionInfo(self.id, "turn", self.caller.api, self.persona.voice_name)

    @property
    def busy(self) -> bool:
        """Whether a turn is in progress."""
        return self._busy

    @asynccontextmanager
    async def turn(self, slot: Slot | None = None) -> AsyncIterator[ConversationLease]:
        """One turn. A failure in it, or a client that disconnects, ends the session.

        `slot`: reserved for the first turn. Raises what `Leases.open` raises, at the first turn, ConversationBusy, and
        UnknownConversation once it has ended.
        """
        sessions = self._sessions
        if self._lease is not None:
            sessions.find(self.id, self.caller.key)
        if self._busy:
            raise ConversationBusy(self.id)
        self._busy = True
        self._stop_timer()
        try:
            if self._lease is None:
                opened = sessions.leases.open(self.persona, self.sampling, self.caller, slot, self.id)
                self._lease = await self._resources.enter_async_context(opened)
                self._resources.enter_context(sessions.registry.register(self, self.info))
                self._began = asyncio.get_running_loop().time()
                sessions.add(self)
            else:
                self._lease.stats.finish()
                self._lease.stats = sessions.leases.stats(self._lease.record, "first audio")
                self._lease.stats.watch(self._lease.conversation)
            yield self._lease
        except BaseException as error:
            await self._close(error)
            raise
        finally:
            self._busy = False
        if sessions.registry.draining:
            await self.end("drained")
        else:
            self._start_timer()

    async def end(self, reason: str = "completed") -> None:
        """Release the slot; a second call does nothing."""
        if self._lease is not None:
            self._lease.reason = reason
        await self._close(None)

    def stop_for_drain(self) -> None:
        """The drain time is over: there will be no further turn."""
        self._sessions.end_soon(self, "drained")

    def _start_timer(self) -> None:
        sessions = self._sessions
        loop = asyncio.get_running_loop()
        left = self._began + sessions.max_seconds - loop.time()
        seconds, reason = min((sessions.idle_seconds, "idle"), (max(left, 0.0), "max_duration"))
        self._timer = loop.call_later(seconds, sessions.end_soon, self, reason)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _close(self, error: BaseException | None) -> None:
        self._stop_timer()
        self._sessions.discard(self)
        resources = self._resources.pop_all()
        await resources.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)


class TurnSessions:
    """All turn sessions by id."""

    def __init__(self, leases: Leases, registry: Sessions, idle_seconds: float, max_seconds: float) -> None:
        """`idle_seconds`: how long a session waits for its next turn. `max_seconds`: how long it lasts at most."""
        self.leases = leases
        self.registry = registry
        self.idle_seconds = idle_seconds
        self.max_seconds = max_seconds
        self._by_id: dict[str, TurnSession] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def new(self, persona: Persona, sampling: SamplingParams, caller: Caller) -> TurnSession:
        """Make a session. It begins with its first turn."""
        return TurnSession(self, persona, sampling, caller)

    def count(self, key: KeyHolder | None) -> int:
        """Return the number of sessions of a key."""
        return sum(session.caller.key is key for session in self._by_id.values())

    def find(self, conversation_id: str, key: KeyHolder | None) -> TurnSession:
        """Return a session. Raises UnknownConversation, also for the id of another key's session."""
        session = self._by_id.get(conversation_id)
        if session is None or session.caller.key is not key:
            raise UnknownConversation(f"no conversation {conversation_id[:64]!r}: it never existed, or it has ended")
        return session

    async def end(self, conversation_id: str, key: KeyHolder | None) -> None:
        """End a session. Raises UnknownConversation or ConversationBusy."""
        session = self.find(conversation_id, key)
        if session.busy:
            raise ConversationBusy(session.id)
        await session.end()

    async def end_waiting(self) -> None:
        """End sessions without a turn in progress; the server is about to stop."""
        for session in list(self._by_id.values()):
            self.end_soon(session, "drained")
        if self._ending:
            await asyncio.wait(self._ending)

    async def close(self) -> None:
        """End all sessions."""
        for session in list(self._by_id.values()):
            await session.end("drained")
        if self._ending:
            await asyncio.wait(self._ending)

    def add(self, session: TurnSession) -> None:
        self._by_id[session.id] = session

    def discard(self, session: TurnSession) -> None:
        self._by_id.pop(session.id, None)

    def end_soon(self, session: TurnSession, reason: str) -> None:
        """From a callback: end a session in a task of its own, unless a turn is in progress."""
        if not session.busy:
            self.discard(session)
            task = asyncio.get_running_loop().create_task(session.end(reason))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
