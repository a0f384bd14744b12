"""Send a response in pieces, with a time limit for clients that do not read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from gateway.errors import SlowClient
from gateway.session.runtime import Runtime

T = TypeVar("T")

# Limit in seconds for a piece that is being sent when the server's drain time is over.
_AFTER_DRAIN_S = 1.0


async def send_all(pieces: AsyncGenerator[T, None], send: Callable[[T], Awaitable[object]], runtime: Runtime) -> None:
    """Send every piece as fast as `send` accepts it. `pieces` is closed in any case.

    Raises SlowClient if a piece is not accepted within the settings' idle time, or soon after the server's drain time.
    """
    limit = _SendLimit(runtime.settings.idle_seconds)
    with runtime.sessions.register(limit):
        async with aclosing(pieces):
            async for piece in pieces:
                await limit.wait(send(piece))


class _SendLimit:
    """Time limit for sending one piece."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout: asyncio.Timeout | None = None

    async def wait(self, sending: Awaitable[object]) -> None:
        """Wait until the piece has been sent. Raises SlowClient."""
        try:
            async with asyncio.timeout(self._seconds) as self._timeout:
                await sending
        except TimeoutError:
            raise SlowClient(f"the response was not read for {self._seconds:g} s") from None
        finally:
            self._timeout = None

    def stop_for_drain(self) -> None:
        """The server's drain time is over."""
        self._seconds = min(self._seconds, _AFTER_DRAIN_S)
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)
