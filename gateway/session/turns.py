"""Conversations that go on from one request to the next: turns over REST, with the same state in the models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from gateway.engine.sampling import Sampling
from gateway.errors import ConversationBusy, UnknownConversation
from gateway.session.admission import Slot
from gateway.session.keys import KeyHolder
from gateway.session.session_info import SessionInfo

if TYPE_CHECKING:
    from gateway.session.runtime import ConversationLease, Persona, Runtime


class TurnSession:
    """A conversation between two of its turns, or in one. It holds a slot until it ends."""

    def __init__(self, registry: TurnSessions, persona: Persona, sampling: Sampling, key: KeyHolder | None) -> None:
        self.id = str(uuid4())
        self.persona = persona
        self.sampling = sampling
        self.key = key
        self._registry = registry
        self._held = AsyncExitStack()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._call: ConversationLease | None = None

    @property
    def info(self) -> SessionInfo:
        """The session as an operator sees it."""
        return SessionInfo(
            self.id, "turn", self.persona.voice if isinstance(self.persona.voice, str) else "voice_audio"
        )

    @property
    def busy(self) -> bool:
        """Whether a turn is under way."""
        return self._busy

    @asynccontextmanager
    async def turn(self, slot: Slot | None = None) -> AsyncIterator[ConversationLease]:
        """Run one turn; a failure in it, or a client that disconnects, ends the conversation.

        `slot`: reserved for the first turn. Raises what `Runtime.open` raises, at the first turn, ConversationBusy, and
        UnknownConversation once it has ended.
        """
        if self._call is not None:
            self._registry.find(self.id, self.key)
        if self._busy:
            raise ConversationBusy(self.id)
        self._busy = True
        self._stop_timer()
        try:
            if self._call is None:
                opened = self._registry.runtime.open(self.persona, self.sampling, self.key, slot)
                self._call = await self._held.enter_async_context(opened)
                self._held.enter_context(self._registry.runtime.on_air(self, self.info))
                self._registry.add(self)
            else:
                self._call.stats.finish()
                self._call.stats = self._registry.runtime.stats()
            yield self._call
        except BaseException as error:
            await self._close(error)
            raise
        finally:
            self._busy = False
        if self._registry.runtime.draining:
            await self.end("drained")
        else:
            self._start_timer()

    async def end(self, reason: str = "completed") -> None:
        """Give everything back; a second time does nothing."""
        if self._call is not None:
            self._call.reason = reason
        await self._close(None)

    def stop_for_drain(self) -> None:
        """The server's drain time is over: nobody can take another turn."""
        self._registry.end_soon(self, "drained")

    def _start_timer(self) -> None:
        registry = self._registry
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(registry.idle_seconds, registry.end_soon, self, "idle")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _close(self, error: BaseException | None) -> None:
        self._stop_timer()
        self._registry.forget(self)
        held = self._held.pop_all()
        await held.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)


class TurnSessions:
    """All that are kept now, by id."""

    def __init__(self, runtime: Runtime, idle_seconds: float) -> None:
        """`idle_seconds`: how long one waits for its next turn."""
        self.runtime = runtime
        self.idle_seconds = idle_seconds
        self._by_id: dict[str, TurnSession] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def new(self, persona: Persona, sampling: Sampling, key: KeyHolder | None) -> TurnSession:
        """One that begins with its first turn."""
        return TurnSession(self, persona, sampling, key)

    def count(self, key: KeyHolder | None) -> int:
        """Turn sessions of a key."""
        return sum(session.key is key for session in self._by_id.values())

    def find(self, conversation_id: str, key: KeyHolder | None) -> TurnSession:
        """Raises UnknownConversation, also for the id of another key's conversation."""
        kept = self._by_id.get(conversation_id)
        if kept is None or kept.key is not key:
            raise UnknownConversation(f"no conversation {conversation_id[:64]!r}: it never was, or it has ended")
        return kept

    async def end(self, conversation_id: str, key: KeyHolder | None) -> None:
        """Raises UnknownConversation or ConversationBusy."""
        kept = self.find(conversation_id, key)
        if kept.busy:
            raise ConversationBusy(kept.id)
        await kept.end()

    async def end_waiting(self) -> None:
        """End those without a turn under way; the server is about to stop."""
        for kept in list(self._by_id.values()):
            self.end_soon(kept, "drained")
        if self._ending:
            await asyncio.wait(self._ending)

    async def close(self) -> None:
        """End all."""
        for kept in list(self._by_id.values()):
            await kept.end("drained")
        if self._ending:
            await asyncio.wait(self._ending)

    def add(self, kept: TurnSession) -> None:
        self._by_id[kept.id] = kept

    def forget(self, kept: TurnSession) -> None:
        self._by_id.pop(kept.id, None)

    def end_soon(self, kept: TurnSession, reason: str) -> None:
        """From a callback: end it in a task of its own, unless a turn is under way."""
        if not kept.busy:
            self.forget(kept)
            task = asyncio.get_running_loop().create_task(kept.end(reason))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
