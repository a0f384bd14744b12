"""The three doors, from outside: each knows its protocol and nothing of pacing or figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Heard = Callable[[int, int], None]
"""Told the index and the size in bytes of every agent frame, the moment it has come."""


class Line(Protocol):
    """One live conversation. What goes wrong is raised as Refused, CallFailed or Malformed."""

    async def open(self) -> None:
        """Connect and say who shall answer; returns when the server is ready."""

    async def send(self, u: int) -> None:
        """Hand user frame u to the transport; returns once it has been taken."""

    async def finish(self) -> tuple[int, int]:
        """Say that this was all, and wait for the end: dropped and late frames by the server's own account."""

    def close(self) -> None:
        """Let go of the connection."""
