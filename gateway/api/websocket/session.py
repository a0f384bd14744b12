"""A live call over a WebSocket, whatever its messages: one task listens, one speaks, and neither can hold the slot."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from gateway.api.websocket.connection import Connection, Gone
from gateway.engine.sampling import Sampling
from gateway.errors import GatewayError
from gateway.session.events import Ended, Event, Reason
from gateway.session.limits import OnGap
from gateway.session.live import LiveSession, open_live_session
from gateway.session.runtime import Persona, Runtime

logger = logging.getLogger(__name__)

# A caller who does not take the end of the call is cut off.
GRACE_S = 1.0

# Ends that are nobody's wish; those are told as errors too.
FAILURES = {
    Reason.SLOW_CLIENT: "slow-client",
    Reason.ENGINE: "engine-error",
    Reason.CLIENT_ERROR: "invalid-request",
    Reason.ERROR: "internal-error",
}


@dataclass(frozen=True, slots=True, eq=False)
class SessionRequest:
    """The call a caller asks for."""

    persona: Persona
    sampling: Sampling
    on_gap: OnGap = "wait"


class WebSocketSession(ABC):
    """One caller's WebSocket from opening to close. A face says what its messages mean."""

    def __init__(self, runtime: Runtime, connection: Connection) -> None:
        self.runtime = runtime
        self.connection = connection
        self._fault: GatewayError | None = None
        self._close: tuple[int, str] | None = None

    @abstractmethod
    async def begin(self) -> SessionRequest:
        """What the caller wants. Raises GatewayError to refuse, Gone."""

    @abstractmethod
    async def hear(self, message: str | bytes, live: LiveSession) -> None:
        """A message of the caller. Raises GatewayError if it cannot be one: the call ends."""

    @abstractmethod
    async def tell(self, event: Event) -> None:
        """Pass an event on. Raises Gone."""

    @abstractmethod
    async def complain(self, kind: str, message: str) -> None:
        """Pass on why there is no call, or none any more. Raises Gone."""

    async def run(self) -> None:
        """The whole connection; never raises."""
        try:
            await self.connection.accept()
            try:
                key = self.connection.caller(self.runtime)
                wanted = await self.begin()
                async with open_live_session(self.runtime, wanted.persona, wanted.sampling, wanted.on_gap, key) as live:
                    await self._talk(live)
            except GatewayError as error:
                await self.complain(error.code, error.message)
                self._close = (error.close_code, error.message)
            # Only now: who sees the close may come back at once, and the slot is free.
            if self._close is not None:
                await self.connection.close(*self._close)
        except Gone:
            pass

    async def _talk(self, live: LiveSession) -> None:
        """Until the call has ended, for whatever reason, and the caller was told or cannot be."""
        speaking = asyncio.create_task(self._speak(live))
        tasks = [speaking, asyncio.create_task(self._listen(live)), asyncio.create_task(live.over.wait())]
        try:
            await asyncio.wait([speaking, tasks[-1]], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([speaking], timeout=GRACE_S)
        finally:
            if not speaking.done():
                self.connection.abort()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not speaking.cancelled():
            speaking.result()

    async def _listen(self, live: LiveSession) -> None:
        try:
            while (message := await self.connection.receive()) is not None:
                await self.hear(message, live)
            live.stop(Reason.DISCONNECTED)
        except GatewayError as error:
            self._fault = error
            live.stop(Reason(error.end_reason), error.message)
        except Exception:
            logger.exception("conversation %s: cannot read its messages", live.id)
            live.stop(Reason.ERROR)

    async def _speak(self, live: LiveSession) -> None:
        try:
            async for event in live.events():
                if isinstance(event, Ended):
                    await self._end(event)
                else:
                    await self.tell(event)
        except Gone:
            live.stop(Reason.DISCONNECTED)

    async def _end(self, ended: Ended) -> None:
        if ended.reason is Reason.DISCONNECTED:
            return
        if self._fault is not None:
            await self.complain(self._fault.code, ended.message)
        elif ended.reason in FAILURES:
            await self.complain(FAILURES[ended.reason], ended.message)
        await self.tell(ended)
        code = ended.reason.close_code if self._fault is None else self._fault.close_code
        self._close = (code, ended.message)


class WebSocketEndpoint:
    """A kind of line as an ASGI application, for a WebSocket route."""

    def __init__(self, runtime: Runtime, kind: type[WebSocketSession]) -> None:
        self._runtime = runtime
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection(scope, receive, send, self._runtime.settings.max_message_bytes)
        await self._kind(self._runtime, connection).run()
