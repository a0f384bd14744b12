"""What a live call tells its face, in order: Ready, then Spoken and Warned as they happen, and Ended once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway.engine.conversation import AgentFrame


class Reason(StrEnum):
    """Why a live call ended; also the label of the metric and the word on the wire."""

    COMPLETED = "completed"
    """The caller said they were done, and every frame they sent has been answered."""
    DISCONNECTED = "disconnected"
    """The caller's connection went away."""
    IDLE = "idle"
    """No audio came for the idle limit."""
    MAX_DURATION = "max_duration"
    """The call reached its longest duration, after a warning."""
    SLOW_CLIENT = "slow_client"
    """The caller did not take the agent's audio."""
    DRAINED = "drained"
    """The server is shutting down and its drain time is over."""
    ENGINE = "engine"
    """Triton failed or went away."""
    ERROR = "error"
    """Something failed that should not."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The prompt is in the models: from now on the caller is heard. Audio sent before has been kept."""

    conversation_id: str
    voice: str
    """The preset's name, "recording" for a voice taken from audio."""
    seed: int
    setup_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class AgentAudio:
    """One agent frame. `latency`: seconds since its user frame was complete at the gateway, or, if it was sent ahead of
    its time, since it was due; 0 for frame 0.

    `dropped`: user frames never heard so far. `queued`: user frames that wait now.
    """

    frame: AgentFrame
    latency: float
    dropped: int
    queued: int


@dataclass(frozen=True, slots=True)
class WarningEvent:
    """Something the caller should know while the call goes on: `code` for programs, `message` for people."""

    code: str
    message: str
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a call amounted to."""

    frames: int
    seconds: float
    """Of agent audio."""
    transcript: str
    dropped_frames: int
    late_frames: int
    """Frames that took longer than a frame lasts."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event. `message` says for people what `reason` says for programs."""

    reason: Reason
    message: str
    summary: Summary


Event = Ready | AgentAudio | WarningEvent | Ended
