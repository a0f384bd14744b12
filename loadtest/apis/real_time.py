"""A user of an API whose server answers in real time, with silence in place of audio that does not come.

So from the first agent frame on the user sends silence, until the common start. Agent frames that answer it are not
counted.
"""

from __future__ import annotations

import asyncio

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
        self.sent = 0
        """User frames sent since the common start."""

    async def send(self, u: int) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self.sent = u + 1
        await self.send_message(self._frames[u % len(self._frames)])

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        super().close()

    def received(self, size: int) -> int:
        """Record the next agent frame, of `size` bytes. Return its number, 0 or less if it answers no user frame.

        With the first one the server is ready.
        """
        index, self._index = self._index, self._index + 1
        number = index - self._before
        if index == 0:
            self._on_frame(0, size)
            self._waiting = asyncio.create_task(self._wait())
            self.ready.set_result(None)
        elif self._waiting is not None:
            return 0
        elif 0 < number <= self.sent:
            self._on_frame(number, size)
        return number

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
