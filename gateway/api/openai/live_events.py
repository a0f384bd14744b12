"""Events of the Live API, one model per event of the wire.

A client event that this server cannot carry out is in `UNSUPPORTED`, with the reason that its error states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import from_json

from gateway.api.openai.errors import OpenAIError

START = "session.start"
APPEND = "session.input_audio.append"
MUTE = "session.input_audio.mute"
UNMUTE = "session.input_audio.unmute"
CLOSE = "session.close"

_NO_TEXT = "the model does not follow text that is added during a session"
_NO_RESPONSES = "this server has no Responses backend"
_NO_DECISIONS = "this server has no Decisions backend"
UNSUPPORTED = {
    "session.update": "the configuration of a session does not change after its start",
    "session.instructions.append": _NO_TEXT,
    "session.thinking.append": _NO_TEXT,
    "session.commentary.append": _NO_TEXT,
    "session.output_audio.fixture.play": "this server plays no fixtures",
    "response.item.create": _NO_RESPONSES,
    "response.create": _NO_RESPONSES,
    "decision.create": _NO_DECISIONS,
    "decision.item.create": _NO_DECISIONS,
    "decision.item.delete": _NO_DECISIONS,
    "transport.dtmf.send": "the session has no SIP trunk",
}
"""Client events that are always refused, and why."""

CLIENT_EVENTS = frozenset({START, APPEND, MUTE, UNMUTE, CLOSE, *UNSUPPORTED})

_MAX_ID_CHARACTERS = 512
# 1 MiB of JSON holds 340,000 lists, which take 140 ms to parse; this many values take 8 ms.
_MAX_VALUES = 20_000


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """A client event: its type, its id, and all its fields, not checked yet."""

    type: str
    event_id: str | None
    fields: dict[str, Any]


class ClientEventError(OpenAIError):
    """A message is not a client event. `client_event_id`: its id, if it has one."""

    def __init__(self, code: str, message: str, param: str | None, client_event_id: str | None) -> None:
        super().__init__(code, message, param)
        self.client_event_id = client_event_id


def parse(message: str | bytes) -> ClientEvent:
    """Parse a message. Raises ClientEventError if it is not JSON or not an event of the API."""
    if isinstance(message, bytes):
        raise ClientEventError("invalid_json", "expected a JSON text message, got binary data", None, None)
    if len(message) > _MAX_VALUES and sum(map(message.count, "[{,")) > _MAX_VALUES:
        raise ClientEventError("invalid_json", f"expected at most {_MAX_VALUES} values", None, None)
    try:
        fields = from_json(message, allow_inf_nan=False)
    except ValueError as error:
        raise ClientEventError("invalid_json", f"expected JSON: {error}", None, None) from None
    if not isinstance(fields, dict):
        raise ClientEventError("invalid_json", "expected a JSON object", None, None)
    event_id, kind = fields.get("event_id"), fields.get("type")
    if event_id is not None and not (isinstance(event_id, str) and len(event_id) <= _MAX_ID_CHARACTERS):
        expected = f"expected a string of at most {_MAX_ID_CHARACTERS} characters"
        raise ClientEventError("invalid_value", expected, "event_id", None)
    if not isinstance(kind, str):
        raise ClientEventError("unknown_event", "expected the event's type, a string", "type", event_id)
    if kind not in CLIENT_EVENTS:
        raise ClientEventError("unknown_event", f"no client event has the type {kind[:100]!r}", "type", event_id)
    return ClientEvent(kind, event_id, fields)


class ServerEvent(BaseModel):
    """What all server events but the audio have in common."""

    event_id: str
    client_event_id: str | None = None
    """The id of the client event that this one answers."""


class SessionStarted(ServerEvent):
    """The models hold the prompt. `session`: the configuration as resolved."""

    type: Literal["session.started"] = "session.started"
    session: dict[str, Any]


class InputAudioMuted(ServerEvent):
    """The model receives silence in place of the client's audio."""

    type: Literal["session.input_audio.muted"] = "session.input_audio.muted"


class InputAudioUnmuted(ServerEvent):
    """The model receives the client's audio again."""

    type: Literal["session.input_audio.unmuted"] = "session.input_audio.unmuted"


class OutputAudioDelta(BaseModel):
    """Audio of the agent, base64 in the session's format."""

    type: Literal["session.output_audio.delta"] = "session.output_audio.delta"
    delta: str


class OutputTranscriptDelta(ServerEvent):
    """Text of one agent frame, whose audio comes next. Times are of the session's timeline, which starts at frame 0."""

    type: Literal["session.output_transcript.delta"] = "session.output_transcript.delta"
    delta: str
    start_ms: int
    end_ms: int


class Usage(BaseModel):
    """Seconds of agent audio, rounded up."""

    seconds: int


class ContextWindow(BaseModel):
    """The part of the model's attention window that prompt and frames fill; 1 once the window has moved on."""

    usage_ratio: float


class SessionUsageUpdated(ServerEvent):
    """Usage so far, about every 15 s."""

    type: Literal["session.usage.updated"] = "session.usage.updated"
    usage: Usage
    context_window: ContextWindow


class SessionClosed(ServerEvent):
    """The last event of a session that had started."""

    type: Literal["session.closed"] = "session.closed"
    reason: Literal["close_requested", "expired", "content", "remote_hangup", "connection_lost"]
    session: dict[str, Any]
    usage: Usage


class ErrorDetails(BaseModel):
    """Why a client event or the session was refused, or why the session failed."""

    type: str
    code: str
    message: str
    param: str | None = None
    client_event_id: str | None = None


class Error(ServerEvent):
    """An error. After the start of the session it goes on, unless `session.closed` follows."""

    type: Literal["error"] = "error"
    error: ErrorDetails


class Info(ServerEvent):
    """A notice."""

    type: Literal["info"] = "info"
    code: str
    message: str
