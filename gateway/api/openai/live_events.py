"""Events of the Live API, one model per event of the wire.

A client event that this server cannot carry out is in `UNSUPPORTED`, with the reason that its error states.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from gateway.api.openai.errors import OpenAIError

START = "session.start"
APPEND = "session.input_audio.append"
MUTE = "session.input_audio.mute"
UNMUTE = "session.input_audio.unmute"
CLOSE = "session.close"
COMMENTARY = "session.commentary.append"

_NO_TEXT = "the model does not follow text that is added during a session"
_NO_RESPONSES = "this server has no Responses backend"
_NO_DECISIONS = "this server has no Decisions backend"
UNSUPPORTED = {
    "session.update": "the configuration of a session does not change after its start",
    "session.instructions.append": _NO_TEXT,
    "session.thinking.append": _NO_TEXT,
    COMMENTARY: f"{_NO_TEXT}, and forced speech is not enabled on this server",
    "session.output_audio.fixture.play": "this server plays no fixtures",
    "response.item.create": _NO_RESPONSES,
    "response.create": _NO_RESPONSES,
    "decision.create": _NO_DECISIONS,
    "decision.item.create": _NO_DECISIONS,
    "decision.item.delete": _NO_DECISIONS,
    "transport.dtmf.send": "the session has no SIP trunk",
}
"""Client events that are refused, and why. COMMENTARY is carried out where forced speech is enabled."""

CLIENT_EVENTS = frozenset({START, APPEND, MUTE, UNMUTE, CLOSE, *UNSUPPORTED})


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


class CommentaryAppended(ServerEvent):
    """The agent says the text from this time on."""

    type: Literal["session.commentary.appended"] = "session.commentary.appended"
    start_ms: int
    end_ms: int


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


def error_event(event_id: str, error: OpenAIError, client_event_id: str | None) -> Error:
    """Make the event of an error."""
    details = ErrorDetails(
        type=error.kind, code=error.code, message=error.message, param=error.param, client_event_id=client_event_id
    )
    return Error(event_id=event_id, error=details)
