"""Events of a live session, in order: Ready, then AgentAudio and WarningEvent as they happen, and Ended once.

Each connection of a resumable session begins with Ready.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway.engine.batch import AgentFrame
from gateway.errors import GatewayError


class Reason(StrEnum):
    """Why a live session ended: label of the metric and value on the wire, with its gRPC status and close code."""

    grpc_status: str
    """Name of a `grpc.StatusCode`."""
    close_code: int
    """WebSocket close code, RFC 6455 section 7.4.1."""

    COMPLETED = "completed", "OK", 1000
    """The client ended its input, and every user frame was answered."""
    DISCONNECTED = "disconnected", "CANCELLED", 1001
    """The connection was lost."""
    IDLE = "idle", "DEADLINE_EXCEEDED", 1001
    """No audio arrived for the idle limit."""
    MAX_DURATION = "max_duration", "DEADLINE_EXCEEDED", 1001
    """The session reached its maximum duration, after a warning."""
    SLOW_CLIENT = "slow_client", "RESOURCE_EXHAUSTED", 1008
    """The client did not read the agent's audio."""
    DRAINED = "drained", "UNAVAILABLE", 1012
    """The server is shutting down and its drain time is over."""
    ENGINE = "engine", "UNAVAILABLE", 1011
    """Triton failed or became unavailable."""
    CLIENT_ERROR = "client_error", "INVALID_ARGUMENT", 1007
    """The client sent something that cannot be used."""
    ERROR = "error", "INTERNAL", 1011
    """The gateway failed."""

    def __new__(cls, value: str, grpc_status: str = "", close_code: int = 0) -> Reason:
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.grpc_status = grpc_status
        reason.close_code = close_code
        return reason


@dataclass(frozen=True, slots=True)
class Resume:
    """How to resume a session whose connection is lost. `seconds`: how long it waits for that."""

    token: str
    seconds: float


@dataclass(slots=True)
class Ready:
    """The models hold the prompt. User frames are processed from now on. Sent again when a session is resumed."""

    conversation_id: str
    voice: str
    """The name of the preset, or "voice_audio" for a voice taken from audio."""
    seed: int
    setup_seconds: float
    prompt_steps: int
    """Steps of the prompt."""
    resume: Resume | None = None
    """None if the session ends with its connection."""
    index: int = 0
    """Of the agent frame that is sent next; not 0 when a session is resumed."""
    missed_text: str = ""
    """Text of the frames that were not sent before the session was resumed."""
    missed_from: int = 0
    """Index of the first of them."""


@dataclass(slots=True, eq=False)
class AgentAudio:
    """One agent frame."""

    frame: AgentFrame
    latency: float
    """Seconds since the user frame was complete at the gateway, or since it was due if it was sent ahead of its time.

    0 for frame 0, which answers no user frame.
    """
    dropped: int
    """User frames dropped so far."""
    queued: int
    """User frames that wait now."""


@dataclass(slots=True)
class WarningEvent:
    """A condition the client should know about: `code` for programs, `message` for people."""

    code: str
    message: str
    seconds_left: float | None = None


@dataclass(slots=True)
class Summary:
    """Totals of a session."""

    frames: int
    seconds: float
    """Of agent audio."""
    transcript: str
    dropped_frames: int
    late_frames: int
    """Frames whose latency was longer than a frame."""


@dataclass(slots=True)
class Ended:
    """The last event: `reason` for programs, `message` for people."""

    reason: Reason
    message: str
    summary: Summary
    error: GatewayError | None = None
    """The error that ended the session, if one did."""


Event = Ready | AgentAudio | WarningEvent | Ended
