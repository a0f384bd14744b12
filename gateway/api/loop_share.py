"""Bound the share of the event loop that the messages of one connection take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")

# Work on a client's messages occupies the event loop for this long at once, and then pauses, so that a flood of
# messages takes at most a fifth of the loop's time. A usual message takes 0.1 ms.
_TURN_S = 0.002
_PAUSE_S = 0.008
# A wait this long was one: other tasks have run. Taking a message that is there takes some microseconds.
_WAITED_S = 0.0002


class LoopShare:
    """For one task that handles messages. `wait` for each message, then `pause_if_due` after each piece of work."""

    def __init__(self) -> None:
        self._turn_ends = perf_counter() + _TURN_S

    async def wait(self, message: Awaitable[T]) -> T:
        """Wait for a message. If that takes time, a new turn begins."""
        asked_at = perf_counter()
        result = await message
        now = perf_counter()
        if now - asked_at > _WAITED_S:
            self._turn_ends = now + _TURN_S
        return result

    async def pause_if_due(self) -> None:
        """Let other tasks run if this one has used its turn."""
        if perf_counter() > self._turn_ends:
            await asyncio.sleep(_PAUSE_S)
            self._turn_ends = perf_counter() + _TURN_S
