"""Cut the agent's frames into responses, and the user's audio into turns, as events of the Realtime API.

A response is one stretch of agent speech. Its audio is sent while it is open, the silence inside included; between
responses nothing is sent. Nothing here changes what the model does.
"""

from __future__ import annotations

from binascii import b2a_base64
from typing import Any
from uuid import uuid4

from gateway.api.openai import realtime_events as events
from gateway.api.openai.errors import OpenAIError
from gateway.api.openai.realtime_config import RealtimeConfig, TurnDetection
from gateway.api.openai.realtime_events import Item, ServerEvent
from gateway.api.openai.realtime_items import Items, message, new_item_id
from gateway.audio.samples import Floats
from gateway.audio.voice_activity import VoiceActivity

SILENT_FRAMES = 8
"""Frames of 80 ms without text or sound that end a response. Pauses between words are shorter."""

CANCEL_FRAMES = 5
"""Frames after a cancelled response that open no other one: LiveKit cancels before it closes a session, and then waits
for all responses, so that it would never close while the agent speaks on."""


class Responses:
    """The agent's responses of one session. `items`: those of the conversation."""

    def __init__(self, items: Items, config: RealtimeConfig) -> None:
        self._items = items
        self._config = config
        self._conversation_id = f"conv_{uuid4().hex[:24]}"
        self._response: _Response | None = None
        self._metadata: dict[str, str] | None = None
        self._user_frames = 0
        self._cancel_frames = 0
        self.last_id: str | None = None
        """Id of the latest response."""

    @property
    def open_id(self) -> str | None:
        """Id of the response that is open, while the agent speaks."""
        return None if self._response is None else self._response.id

    def request(self, metadata: dict[str, str] | None) -> None:
        """Take note of a request: the next response carries its metadata. The agent speaks when the model does."""
        self._metadata = metadata

    def frame(self, text: str, quiet_frames: int, audio: bytes) -> list[ServerEvent]:
        """Return the events of the next agent frame.

        Args:
            text: of the frame.
            quiet_frames: frames since the last one with text or sound; 0 opens a response.
            audio: of the frame, in the session's output format.
        """
        self._user_frames += 1
        found: list[ServerEvent] = []
        if self._cancel_frames:
            self._cancel_frames -= 1
        elif self._response is None and quiet_frames == 0:
            found += self._open()
        if (response := self._response) is None:
            return found
        response.frames += 1
        at = response.content
        if text:
            response.pieces.append(text)
            found.append(events.TranscriptDelta(**at, delta=text))
        if audio:
            found.append(events.AudioDelta(**at, delta=b2a_base64(audio, newline=False).decode("ascii")))
        return [*found, *self._close("completed")] if quiet_frames >= SILENT_FRAMES else found

    def cancel(self) -> list[ServerEvent]:
        """Close the response that is open. If the agent speaks on, another one opens after a pause."""
        self._cancel_frames = CANCEL_FRAMES
        return self._close("cancelled", {"reason": "client_cancelled"})

    def fail(self, error: OpenAIError) -> list[ServerEvent]:
        """Close the response that is open because the session ends."""
        return self._close("failed", {"error": {"type": error.kind, "code": error.code, "message": error.message}})

    def _open(self) -> list[ServerEvent]:
        self._response = response = _Response(f"resp_{uuid4().hex[:24]}", new_item_id(), self._metadata)
        self.last_id, self._metadata = response.id, None
        item = response.item("in_progress", [])
        response.previous_id = self._items.add(item)
        return [
            events.ResponseCreated(response=self._fields(response, "in_progress", [])),
            events.OutputItemAdded(response_id=response.id, item=item),
            events.ItemAdded(item=item, previous_item_id=response.previous_id),
            events.ContentPartAdded(**response.content, part={"type": "audio", "transcript": ""}),
        ]

    def _close(self, status: str, details: dict[str, Any] | None = None) -> list[ServerEvent]:
        response, self._response = self._response, None
        if response is None:
            return []
        transcript = "".join(response.pieces)
        item = response.item(
            "completed" if status == "completed" else "incomplete",
            [{"type": "output_audio", "transcript": transcript}],
        )
        self._items.replace(item)
        fields = self._fields(response, status, [item])
        fields |= {"status_details": {"type": status, **(details or {})}, "usage": self._usage(response)}
        self._user_frames = 0
        return [
            events.AudioDone(**response.content),
            events.TranscriptDone(**response.content, transcript=transcript),
            events.ContentPartDone(**response.content, part={"type": "audio", "transcript": transcript}),
            events.OutputItemDone(response_id=response.id, item=item),
            events.ItemDone(item=item, previous_item_id=response.previous_id),
            events.ResponseDone(response=fields),
        ]

    def _fields(self, response: _Response, status: str, output: list[Item]) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "id": response.id,
            "object": "realtime.response",
            "status": status,
            "output": output,
            "conversation_id": self._conversation_id,
            "output_modalities": ["audio"],
            "max_output_tokens": "inf",
            "audio": {"output": self._config.audio_output()},
        }
        if response.metadata is not None:
            fields["metadata"] = response.metadata
        return fields

    def _usage(self, response: _Response) -> dict[str, Any]:
        """An audio token is a frame of 80 ms, a text token a piece of text. Input is all since the last response."""
        heard, spoken, text = self._user_frames, response.frames, len(response.pieces)
        cached = {"audio_tokens": 0, "image_tokens": 0, "text_tokens": 0}
        return {
            "total_tokens": heard + spoken + text,
            "input_tokens": heard,
            "output_tokens": spoken + text,
            "input_token_details": {
                "audio_tokens": heard,
                "image_tokens": 0,
                "text_tokens": 0,
                "cached_tokens": 0,
                "cached_tokens_details": cached,
            },
            "output_token_details": {"audio_tokens": spoken, "text_tokens": text},
        }


class _Response:
    """A response that is open."""

    def __init__(self, response_id: str, item_id: str, metadata: dict[str, str] | None) -> None:
        self.id = response_id
        self.metadata = metadata
        self.previous_id: str | None = None
        self.pieces: list[str] = []
        self.frames = 0
        self.content: dict[str, Any] = {"response_id": response_id, "item_id": item_id}
        """Fields of the events of the content part."""

    def item(self, status: str, content: list[dict[str, Any]]) -> Item:
        """The item as it is in this state."""
        return message(self.content["item_id"], "assistant", status, content)


class UserTurns:
    """Reports when the user speaks, if the client has asked for it.

    While a response is open the begin of speech is not reported: clients would discard the agent's audio, and the model
    itself decides whether the agent stops.
    """

    def __init__(self, items: Items, responses: Responses, sample_rate: int) -> None:
        self._items = items
        self._responses = responses
        self._sample_rate = sample_rate
        self._detection: TurnDetection | None = None
        self._activity: VoiceActivity | None = None
        self._samples = 0
        self._offset_ms = 0
        self._started_ms = 0
        self._item_id: str | None = None

    def configure(self, detection: TurnDetection | None) -> None:
        """Set when to report speech; None for never."""
        if detection == self._detection:
            return
        self._detection, self._item_id = detection, None
        self._activity = None if detection is None else VoiceActivity(self._sample_rate, detection.silence_ms)
        self._offset_ms = 1000 * self._samples // self._sample_rate

    def audio(self, pcm: Floats) -> list[ServerEvent]:
        """Return the events of the user's next samples [T] float32, at the model's rate."""
        self._samples += len(pcm)
        if self._activity is None:
            return []
        found: list[ServerEvent] = []
        for activity in self._activity.feed(pcm):
            at_ms = self._offset_ms + activity.at_ms
            if activity.kind == "started":
                self._started_ms = at_ms
                found += self._start()
            elif self._item_id is not None:
                found.append(events.SpeechStopped(audio_end_ms=at_ms, item_id=self._item_id))
                found += self.commit()
        return found + self._start() if self._activity.speaking else found

    def commit(self) -> list[ServerEvent]:
        """Make an item of the user's audio since the last one."""
        item_id, self._item_id = self._item_id or new_item_id(), None
        # @openai/agents-realtime does not survive an item without `transcript`.
        item = message(item_id, "user", "completed", [{"type": "input_audio", "transcript": None}])
        previous = self._items.add(item)
        return [
            events.Committed(item_id=item_id, previous_item_id=previous),
            events.ItemAdded(item=item, previous_item_id=previous),
            events.ItemDone(item=item, previous_item_id=previous),
        ]

    def _start(self) -> list[ServerEvent]:
        """Report that the user speaks, unless it has been or the agent speaks."""
        if self._item_id is not None or self._responses.open_id is not None or self._detection is None:
            return []
        self._item_id = new_item_id()
        start_ms = max(0, self._started_ms - self._detection.padding_ms)
        return [events.SpeechStarted(audio_start_ms=start_ms, item_id=self._item_id)]
