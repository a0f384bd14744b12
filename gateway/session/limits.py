"""What a caller may choose about a live call, and the limits the operator sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.settings import Settings

OnGap = Literal["wait", "silence"]
"""When the caller's audio stops coming: "wait" for more, or go on with "silence" in real time.

What comes after silence has been heard in its place is dropped.
"""


@dataclass(frozen=True, slots=True)
class LiveLimits:
    """Seconds and frames a live call may take; the operator's, from the settings."""

    idle: float = 30.0
    """Without any audio from the caller."""
    duration: float = 3600.0
    warn: float = 30.0
    """Before `duration` is over, a warning."""
    input_frames: int = 10
    """User frames that may wait; a frame lasts 80 ms."""
    output_frames: int = 50
    """Agent frames a caller may leave unread."""
    speed: float = 1.0
    """Frames are heard no faster than this multiple of real time, after a burst of `input_frames`."""

    @classmethod
    def of(cls, settings: Settings) -> LiveLimits:
        """As the operator set them."""
        return cls(
            idle=settings.idle_seconds,
            duration=settings.max_call_seconds,
            warn=settings.warn_seconds,
            input_frames=settings.input_frames,
            output_frames=settings.output_frames,
            speed=settings.live_speed,
        )
