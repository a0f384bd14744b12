"""Events of the Realtime API, one model per event of the wire, and the items and responses in them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from gateway.api.openai.errors import OpenAIError

UPDATE = "session.update"
APPEND = "input_audio_buffer.append"
COMMIT = "input_audio_buffer.commit"
CLEAR = "input_audio_buffer.clear"
CREATE_ITEM = "conversation.item.create"
RETRIEVE_ITEM = "conversation.item.retrieve"
DELETE_ITEM = "conversation.item.delete"
TRUNCATE_ITEM = "conversation.item.truncate"
CREATE_RESPONSE = "response.create"
CANCEL_RESPONSE = "response.cancel"
CLEAR_OUTPUT = "output_audio_buffer.clear"

CLIENT_EVENTS = frozenset({
    UPDATE, APPEND, COMMIT, CLEAR, CREATE_ITEM, RETRIEVE_ITEM, DELETE_ITEM, TRUNCATE_ITEM, CREATE_RESPONSE,
    CANCEL_RESPONSE, CLEAR_OUTPUT,
})  # fmt: skip

Item = dict[str, Any]
"""An item of the conversation, as it is sent. Fields without a value are left out: some clients reject null."""


class ServerEvent(BaseModel):
    """What all server events have in common."""

    event_id: str = ""
    """Set when the event is sent."""


class SessionCreated(ServerEvent):
    """The first event. `session`: the default configuration."""

    type: Literal["session.created"] = "session.created"
    session: dict[str, Any]


class SessionUpdated(ServerEvent):
    """The configuration as resolved, all of it."""

    type: Literal["session.updated"] = "session.updated"
    session: dict[str, Any]


class SpeechStarted(ServerEvent):
    """The user begins to speak."""

    type: Literal["input_audio_buffer.speech_started"] = "input_audio_buffer.speech_started"
    audio_start_ms: int
    item_id: str


class SpeechStopped(ServerEvent):
    """The user has stopped speaking."""

    type: Literal["input_audio_buffer.speech_stopped"] = "input_audio_buffer.speech_stopped"
    audio_end_ms: int
    item_id: str


class Committed(ServerEvent):
    """The user's audio since the last commit is an item."""

    type: Literal["input_audio_buffer.committed"] = "input_audio_buffer.committed"
    item_id: str
    previous_item_id: str | None = None


class Cleared(ServerEvent):
    """Acknowledges `input_audio_buffer.clear`."""

    type: Literal["input_audio_buffer.cleared"] = "input_audio_buffer.cleared"


class OutputCleared(ServerEvent):
    """Acknowledges `output_audio_buffer.clear`."""

    type: Literal["output_audio_buffer.cleared"] = "output_audio_buffer.cleared"
    response_id: str


class ItemAdded(ServerEvent):
    """The conversation has a new item."""

    type: Literal["conversation.item.added"] = "conversation.item.added"
    item: Item
    previous_item_id: str | None = None


class ItemDone(ServerEvent):
    """The item does not change any more."""

    type: Literal["conversation.item.done"] = "conversation.item.done"
    item: Item
    previous_item_id: str | None = None


class ItemRetrieved(ServerEvent):
    """Answers `conversation.item.retrieve`."""

    type: Literal["conversation.item.retrieved"] = "conversation.item.retrieved"
    item: Item


class ItemDeleted(ServerEvent):
    """Answers `conversation.item.delete`."""

    type: Literal["conversation.item.deleted"] = "conversation.item.deleted"
    item_id: str


class ItemTruncated(ServerEvent):
    """Answers `conversation.item.truncate`."""

    type: Literal["conversation.item.truncated"] = "conversation.item.truncated"
    item_id: str
    content_index: int
    audio_end_ms: int


class ResponseCreated(ServerEvent):
    """The agent begins to speak."""

    type: Literal["response.created"] = "response.created"
    response: dict[str, Any]


class ResponseDone(ServerEvent):
    """The agent has stopped speaking."""

    type: Literal["response.done"] = "response.done"
    response: dict[str, Any]


class ResponseEvent(ServerEvent):
    """What events of the only item of a response have in common."""

    response_id: str
    output_index: int = 0


class OutputItemAdded(ResponseEvent):
    """The item of a response, without content."""

    type: Literal["response.output_item.added"] = "response.output_item.added"
    item: Item


class OutputItemDone(ResponseEvent):
    """The item of a response, complete."""

    type: Literal["response.output_item.done"] = "response.output_item.done"
    item: Item


class ContentEvent(ResponseEvent):
    """What events of the only content part of a response have in common."""

    item_id: str
    content_index: int = 0


class ContentPartAdded(ContentEvent):
    """The content part of a response begins."""

    type: Literal["response.content_part.added"] = "response.content_part.added"
    part: dict[str, Any]


class ContentPartDone(ContentEvent):
    """The content part of a response is complete."""

    type: Literal["response.content_part.done"] = "response.content_part.done"
    part: dict[str, Any]


class TranscriptDelta(ContentEvent):
    """Text of one agent frame, whose audio comes next."""

    type: Literal["response.output_audio_transcript.delta"] = "response.output_audio_transcript.delta"
    delta: str


class TranscriptDone(ContentEvent):
    """The text of the response."""

    type: Literal["response.output_audio_transcript.done"] = "response.output_audio_transcript.done"
    transcript: str


class AudioDelta(ContentEvent):
    """Audio of one agent frame, base64 in the session's output format."""

    type: Literal["response.output_audio.delta"] = "response.output_audio.delta"
    delta: str


class AudioDone(ContentEvent):
    """The audio of the response is complete."""

    type: Literal["response.output_audio.done"] = "response.output_audio.done"


class ErrorDetails(BaseModel):
    """Why a client event or the session was refused, or why the session failed. `event_id`: of the client event."""

    type: str
    code: str
    message: str
    param: str | None = None
    event_id: str | None = None


class Error(ServerEvent):
    """An error. The session goes on, unless the connection is closed."""

    type: Literal["error"] = "error"
    error: ErrorDetails


def error_event(event_id: str, error: OpenAIError, client_event_id: str | None) -> Error:
    """Make the event of an error."""
    details = ErrorDetails(
        type=error.kind, code=error.code, message=error.message, param=error.param, event_id=client_event_id
    )
    return Error(event_id=event_id, error=details)
