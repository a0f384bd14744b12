"""An answer on its way, piece by piece, to a caller who may not read it: that holds no slot for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from gateway.errors import SlowClient
from gateway.session.runtime import Runtime

T = TypeVar("T")

# What is on its way when the server's drain time is over must be taken within this.
_LAST_WORDS_S = 1.0


async def send_all(pieces: AsyncGenerator[T, None], send: Callable[[T], Awaitable[object]], runtime: Runtime) -> None:
    """Every piece, as fast as `send` takes it; `pieces` is closed in any case.

    Raises SlowClient when a piece is not taken for the settings' idle time, or soon after the server's drain time.
    """
    patience = _Patience(runtime.settings.idle_seconds)
    with runtime.sessions.register(patience):
        async with aclosing(pieces):
            async for piece in pieces:
                await patience.wait(send(piece))


class _Patience:
    """How long a caller may take over a piece."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limit: asyncio.Timeout | None = None

    async def wait(self, sending: Awaitable[object]) -> None:
        """Until the piece has been taken. Raises SlowClient."""
        try:
            async with asyncio.timeout(self._seconds) as self._limit:
                await sending
        except TimeoutError:
            raise SlowClient(f"the answer was not read for {self._seconds:g} s") from None
        finally:
            self._limit = None

    def stop_for_drain(self) -> None:
        """The server's drain time is over."""
        self._seconds = min(self._seconds, _LAST_WORDS_S)
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + self._seconds)
