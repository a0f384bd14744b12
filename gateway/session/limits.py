"""Gap policy and limits of live sessions. The client chooses the policy; the settings define the limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gateway.settings import Settings

OnGap = Literal["wait", "silence"]
"""What happens when the client's audio stops: "wait" for more, or continue in real time with "silence".

Audio that arrives after silence took its place is dropped.
"""


# Clients may queue their audio while the connection is lost and send it at once after that.
_RESUMED_EARLY_FRAMES = 2
_RESUMED_BURST_S = 1.0


@dataclass(frozen=True, slots=True)
class LiveLimits:
    """Limits of one live session."""

    idle: float = 30.0
    """Seconds without audio from the client."""
    duration: float = 3600.0
    """Seconds from Ready to the end."""
    warn: float = 30.0
    """Seconds before the end of `duration` at which the client is warned."""
    input_frames: int = 10
    """User frames of 80 ms that may wait."""
    output_frames: int = 50
    """Agent frames of 80 ms that the client may leave unread."""
    speed: float = 1.0
    """Multiple of real time at which user frames are used, after a burst of `lead_frames`; 0 for no limit."""
    lead_frames: int = 10
    """User frames that may be used ahead of their time."""
    early_frames: int = 10
    """Of the user frames that a client in real time sends before Ready, so many of the latest are used."""
    burst: float = 0.0
    """Seconds after Ready in which no more than `early_frames` may wait; older ones are dropped.

    For clients that queue their microphone's audio until the session is ready, and then send it at once.
    """

    @classmethod
    def of(cls, settings: Settings) -> LiveLimits:
        """Read the limits from the settings."""
        return cls(
            idle=settings.idle_seconds,
            duration=settings.max_call_seconds,
            warn=settings.warn_seconds,
            input_frames=settings.input_frames,
            output_frames=settings.output_frames,
            speed=settings.live_speed,
            lead_frames=settings.input_frames,
            early_frames=settings.input_frames,
        )

    def resumed(self) -> LiveLimits:
        """Return the limits after a resumption: audio from before it is stale, because silence took its place."""
        early = min(self.early_frames, _RESUMED_EARLY_FRAMES)
        return replace(self, early_frames=early, burst=_RESUMED_BURST_S)
