"""The events of the OpenAI APIs as they are published: a model per event, from the models that the server checks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway.api.asyncapi import Channel
from gateway.api.openai import live_events, realtime_events
from gateway.api.openai.client_events import MAX_ID_CHARACTERS
from gateway.api.openai.live_config import SessionConfig
from gateway.api.openai.realtime_config import SessionUpdate
from gateway.api.openai.realtime_items import CreatedItem


class ClientMessage(BaseModel):
    """What all client events have in common."""

    event_id: str | None = Field(None, max_length=MAX_ID_CHARACTERS)


class LiveStart(ClientMessage):
    """Start the session. The first event."""

    type: Literal["session.start"]
    session: SessionConfig


class LiveAppend(ClientMessage):
    """The user's audio: base64 of whole samples."""

    type: Literal["session.input_audio.append"]
    audio: str


class LiveMute(ClientMessage):
    """The model receives silence until the next unmute."""

    type: Literal["session.input_audio.mute"]


class LiveUnmute(ClientMessage):
    """The model receives the user's audio again."""

    type: Literal["session.input_audio.unmute"]


class LiveClose(ClientMessage):
    """End the session."""

    type: Literal["session.close"]


class LiveCommentary(ClientMessage):
    """Text that the agent says, where the server has forced speech enabled. `delegation_id` must be null."""

    type: Literal["session.commentary.append"]
    content: str
    delegation_id: str | None = None


class LiveUnsupported(ClientMessage):
    """Events of the API that this server answers with an error."""

    type: Literal[
        "session.update",
        "session.instructions.append",
        "session.thinking.append",
        "session.output_audio.fixture.play",
        "response.item.create",
        "response.create",
        "decision.create",
        "decision.item.create",
        "decision.item.delete",
        "transport.dtmf.send",
    ]


class RealtimeUpdate(ClientMessage):
    """Change the configuration. What is absent does not change."""

    type: Literal["session.update"]
    session: SessionUpdate


class RealtimeAppend(ClientMessage):
    """The user's audio: base64 of whole samples."""

    type: Literal["input_audio_buffer.append"]
    audio: str


class RealtimeCommit(ClientMessage):
    """Make an item of the user's audio."""

    type: Literal["input_audio_buffer.commit"]


class RealtimeClear(ClientMessage):
    """Acknowledged; the model has the audio already."""

    type: Literal["input_audio_buffer.clear"]


class RealtimeCreateItem(ClientMessage):
    """Add an item, which the model does not see."""

    type: Literal["conversation.item.create"]
    previous_item_id: str | None = None
    item: CreatedItem


class RealtimeRetrieveItem(ClientMessage):
    """Ask for an item."""

    type: Literal["conversation.item.retrieve"]
    item_id: str = Field(max_length=128)


class RealtimeDeleteItem(ClientMessage):
    """Remove an item."""

    type: Literal["conversation.item.delete"]
    item_id: str = Field(max_length=128)


class RealtimeTruncateItem(ClientMessage):
    """Drop an item's transcript."""

    type: Literal["conversation.item.truncate"]
    item_id: str = Field(max_length=128)
    content_index: int = Field(ge=0)
    audio_end_ms: int = Field(ge=0)


class RealtimeCreateResponse(ClientMessage):
    """The next response carries the metadata."""

    type: Literal["response.create"]
    response: dict[str, Any] | None = None


class RealtimeCancelResponse(ClientMessage):
    """Close the response that is open."""

    type: Literal["response.cancel"]
    response_id: str | None = None


class RealtimeClearOutput(ClientMessage):
    """Acknowledged; audio that was sent is the client's to discard."""

    type: Literal["output_audio_buffer.clear"]


CHANNELS = (
    Channel(
        "live",
        "/v1/live/sessions",
        "The OpenAI Live API: turnless and full-duplex. The first event is session.start.",
        client=(LiveStart, LiveAppend, LiveMute, LiveUnmute, LiveClose, LiveCommentary, LiveUnsupported),
        server=(
            live_events.SessionStarted,
            live_events.InputAudioMuted,
            live_events.InputAudioUnmuted,
            live_events.CommentaryAppended,
            live_events.OutputAudioDelta,
            live_events.OutputTranscriptDelta,
            live_events.SessionUsageUpdated,
            live_events.SessionClosed,
            live_events.Error,
            live_events.Info,
        ),
    ),
    Channel(
        "realtime",
        "/v1/realtime",
        "The OpenAI Realtime API, GA. The server sends session.created first.",
        client=(
            RealtimeUpdate,
            RealtimeAppend,
            RealtimeCommit,
            RealtimeClear,
            RealtimeCreateItem,
            RealtimeRetrieveItem,
            RealtimeDeleteItem,
            RealtimeTruncateItem,
            RealtimeCreateResponse,
            RealtimeCancelResponse,
            RealtimeClearOutput,
        ),
        server=(
            realtime_events.SessionCreated,
            realtime_events.SessionUpdated,
            realtime_events.SpeechStarted,
            realtime_events.SpeechStopped,
            realtime_events.Committed,
            realtime_events.Cleared,
            realtime_events.OutputCleared,
            realtime_events.ItemAdded,
            realtime_events.ItemDone,
            realtime_events.ItemRetrieved,
            realtime_events.ItemDeleted,
            realtime_events.ItemTruncated,
            realtime_events.ResponseCreated,
            realtime_events.ResponseDone,
            realtime_events.OutputItemAdded,
            realtime_events.OutputItemDone,
            realtime_events.ContentPartAdded,
            realtime_events.ContentPartDone,
            realtime_events.TranscriptDelta,
            realtime_events.TranscriptDone,
            realtime_events.AudioDelta,
            realtime_events.AudioDone,
            realtime_events.Error,
        ),
    ),
)
