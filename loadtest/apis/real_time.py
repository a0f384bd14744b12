"""A user of an API whose server answers in real time, with silence in place of audio that does not come.

So from the first agent frame on the user sends silence, until the common start. Agent frames that answer it are not
counted.
"""

from __future__ import annotations

import asyncio
from typing import Any

from loadtest.apis import OnFrame
from loadtest.apis.rfc6455 import WebSocketConnection
from loadtest.plan import Plan
from loadtest.record import FRAME_SECONDS, CallFailed, Refused


class RealTimeConnection(WebSocketConnection):
    """One connection, whose user frames are `frames`: masked messages, of `silent` before the common start."""

    def __init__(self, plan: Plan, on_frame: OnFrame, frames: list[bytes], silent: bytes) -> None:
        super().__init__(plan)
        self._on_frame = on_frame
        self._frames = frames
        self._silent = silent
        self._index = 0
        self._before = 0
        self._waiting: asyncio.Task[None] | None = None
        self._sent = 0
        """User frames since the common start."""
        self._all_sent = False
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send(self, u: int) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._sent = u + 1
        await self.send_message(self._frames[u % len(self._frames)])

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        super().close()

    async def answered(self) -> None:
        """All user frames were sent: wait until each is answered. Raises Refused or CallFailed."""
        self._all_sent = True
        either: list[asyncio.Future[Any]] = [self._answered, self.close_code]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.close_code.done():
            await self.close_code
            raise self.failure()

    def received(self, size: int) -> None:
        """Record the next agent frame, of `size` bytes. With the first one the server is ready."""
        index, self._index = self._index, self._index + 1
        if index == 0:
            self._on_frame(0, size)
            self._waiting = asyncio.create_task(self._wait())
            self.ready.set_result(None)
            return
        number = index - self._before
        if number > self._sent:
            # It answers silence that the server put in place of late audio.
            self._before += 1
        elif number > 0:
            self._on_frame(number, size)
        if self._all_sent and number >= self._sent and not self._answered.done():
            self._answered.set_result(None)

    async def _wait(self) -> None:
        """Send silence in real time."""
        due = asyncio.get_running_loop().time()
        try:
            while True:
                self._before += 1
                await self.send_message(self._silent)
                due += FRAME_SECONDS
                await asyncio.sleep(max(due - asyncio.get_running_loop().time(), 0))
        except (CallFailed, Refused):
            return
