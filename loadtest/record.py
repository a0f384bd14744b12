"""What one caller noted down: when each frame went and came. Times are seconds since the common start."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

FRAME_SECONDS = 0.08


class Face(StrEnum):
    """Through which door a caller comes."""

    GRPC = "grpc"
    WEBSOCKET = "websocket"
    REST = "rest"


class Outcome(StrEnum):
    """How a conversation went."""

    COMPLETED = "completed"
    REFUSED = "refused"
    """The server said that it has no room."""
    FAILED = "failed"
    """Anything else that was not as it should be; `Record.reason` says what."""


class Refused(Exception):  # noqa: N818 - it is no fault
    """The server has no room for this conversation."""


class CallFailed(Exception):  # noqa: N818 - says what is the matter
    """The connection or the conversation broke."""


class Malformed(CallFailed):
    """The server sent what the protocol does not allow."""


@dataclass
class Record:
    """One conversation (of a live caller) or one answer (of a REST caller).

    expected: agent frames that should come in the fixed time. setup: from connecting to being admitted with the prompt
    in the models. first_audio: from connecting to agent frame 1, less the wait for the common start; of a REST answer
    to its first bytes. total: of a REST answer.
    sent[u]: when user frame u was handed to the transport; late[u]: how much after it was due. came[u]: when agent
    frame u + 1 had been received. held: seconds the transport kept the caller from speaking.
    frames: agent frames received, frame 0 not counted. dropped, late_at_server: the server's own account.
    """

    face: Face
    user: int
    expected: int
    outcome: Outcome = Outcome.FAILED
    reason: str = ""
    setup: float | None = None
    first_audio: float | None = None
    total: float | None = None
    frames: int = 0
    bytes: int = 0
    dropped: int | None = None
    late_at_server: int | None = None
    held: float = 0.0
    sent: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    came: list[float] = field(default_factory=list)

    @property
    def latencies(self) -> list[float]:
        """Seconds, of the frames that came."""
        return self.latencies_from(0)

    def latencies_from(self, first: int) -> list[float]:
        """Those of frame `first` and later."""
        # A frame cannot come before it is asked for, so `came` is never the longer one.
        return [came - sent for sent, came in zip(self.sent[first:], self.came[first:], strict=False)]

    def to_json(self) -> dict[str, Any]:
        """As `of_json` takes it; times to 10 µs."""
        plain = asdict(self)
        for name in ("sent", "late", "came"):
            plain[name] = [round(moment, 5) for moment in plain[name]]
        return plain

    @classmethod
    def of_json(cls, plain: dict[str, Any]) -> Record:
        """The inverse of `to_json`."""
        return cls(**{**plain, "face": Face(plain["face"]), "outcome": Outcome(plain["outcome"])})
