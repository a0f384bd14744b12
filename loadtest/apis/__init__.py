"""Clients of the live APIs. Each knows its protocol, and nothing of pacing or statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

OnFrame = Callable[[int, int], None]
"""Called with the index and the size in bytes of each agent frame when it is received."""


class LiveClient(Protocol):
    """One live conversation. Every failure is raised as Refused, CallFailed or Malformed."""

    frame_bytes: ClassVar[int]
    """Size of an agent frame."""

    async def open(self) -> None:
        """Connect and send the start message; return when the server is ready."""

    async def send(self, u: int) -> None:
        """Hand user frame u to the transport; return once it has been accepted."""

    async def finish(self) -> tuple[int, int]:
        """End the conversation and wait for the server's end; return its counts of dropped and late frames, if any."""

    def close(self) -> None:
        """Close the connection."""
