"""What one call measured: when each frame was sent and received. Times are seconds since the call began to send."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

FRAME_SECONDS = 0.08


class Api(StrEnum):
    """The API a user connects to."""

    GRPC = "grpc"
    WEBSOCKET = "websocket"
    LIVE = "live"
    """The OpenAI Live API."""
    REALTIME = "realtime"
    """The OpenAI Realtime API."""
    TWILIO = "twilio"
    REST = "rest"


class Outcome(StrEnum):
    """How a conversation ended."""

    COMPLETED = "completed"
    REFUSED = "refused"
    """The server had no free slot."""
    FAILED = "failed"
    """Anything else that is not regular; `Record.reason` states it."""
    STOPPED = "stopped"
    """The run was stopped before the server had admitted or refused it."""


class Refused(Exception):  # noqa: N818 - an expected outcome, not an error
    """The server has no free slot for this conversation."""


class CallFailed(Exception):  # noqa: N818 - the message states the reason
    """The connection or the conversation broke."""


class Malformed(CallFailed):
    """The server sent something the protocol does not allow."""


@dataclass
class Record:
    """One conversation (of a live user) or one response (of a REST user).

    began: when the call began to send, in seconds since 1970; of a call that never did, when it connected. expected:
    agent frames due in the call's time; of a call that the run stopped, until then. setup: seconds from connecting to
    `ready`. first_audio: seconds from connecting to agent frame 1, without the wait for a common start; of a REST
    response to its first audio bytes. total: seconds of a whole REST response.
    sent[u]: when user frame u was handed to the transport; late[u]: how long after it was due. received[u]: when agent
    frame u + 1 was received. blocked: seconds the transport did not accept data.
    frames: agent frames received, without frame 0. dropped, late_at_server: counted by the server.
    """

    api: Api
    user: int
    expected: int
    outcome: Outcome = Outcome.FAILED
    reason: str = ""
    began: float = 0.0
    setup: float | None = None
    first_audio: float | None = None
    total: float | None = None
    frames: int = 0
    bytes: int = 0
    dropped: int | None = None
    late_at_server: int | None = None
    blocked: float = 0.0
    sent: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    received: list[float] = field(default_factory=list)

    @property
    def latencies(self) -> list[float]:
        """Seconds, of the frames that were received."""
        return self.latencies_from(0)

    def latencies_from(self, first: int) -> list[float]:
        """Seconds, of received frames `first` and later."""
        # `received` is never longer than `sent`: a frame before its user frame is rejected as malformed.
        pairs = zip(self.sent[first:], self.received[first:], strict=False)
        return [received - sent for sent, received in pairs]

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it; times rounded to 10 µs."""
        plain = asdict(self)
        for name in ("sent", "late", "received"):
            plain[name] = [round(moment, 5) for moment in plain[name]]
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Record:
        """The inverse of `to_json`."""
        return cls(**{**plain, "api": Api(plain["api"]), "outcome": Outcome(plain["outcome"])})
