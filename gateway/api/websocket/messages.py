"""The JSON messages of `/v1/converse`, in both directions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gateway.api.rest.schemas import LiveParams
from gateway.audio.decode import MAX_RATE, MIN_RATE
from gateway.audio.stream import PcmFormat
from gateway.errors import InvalidRequest, MalformedBody

# Of what is wrong with a message, this much is told.
_MAX_PROBLEMS = 5


class AudioParams(BaseModel):
    """How the caller's binary messages are to be read; the agent's come in the same format at the model's rate."""

    model_config = ConfigDict(extra="forbid")

    format: PcmFormat = "pcm_s16le"
    sample_rate: int = Field(default=24_000, ge=MIN_RATE, le=MAX_RATE)


class Start(LiveParams):
    """The first message: who shall be on the line."""

    type: Literal["start"]
    audio: AudioParams = AudioParams()


class End(BaseModel):
    """No more audio will come."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["end"]


class AudioFormat(BaseModel):
    """How the agent's binary messages are to be read."""

    format: PcmFormat
    sample_rate: int


class Ready(BaseModel):
    """The prompt is in the models; the agent's first frame follows."""

    type: Literal["ready"] = "ready"
    conversation_id: str
    voice: str
    seed: int
    audio: AudioFormat
    frame_size: int
    setup_ms: float


class Text(BaseModel):
    """What the agent says with frame `index`, whose audio comes next."""

    type: Literal["text"] = "text"
    index: int
    text: str


class Stats(BaseModel):
    """About once a second: how the call goes. `latency_ms`: the longest since the last stats."""

    type: Literal["stats"] = "stats"
    index: int
    latency_ms: float
    dropped_frames: int
    queued_ms: float


class Warning(BaseModel):
    """Something to know while the call goes on."""

    type: Literal["warning"] = "warning"
    code: str
    message: str
    seconds_left: float | None = None


class Error(BaseModel):
    """Why there is no call, or none any more."""

    type: Literal["error"] = "error"
    code: str
    message: str


class Ended(BaseModel):
    """The last message: what the call amounted to."""

    type: Literal["ended"] = "ended"
    reason: str
    message: str
    frames: int
    seconds: float
    transcript: str
    dropped_frames: int
    late_frames: int


_FROM_CALLER: TypeAdapter[Start | End] = TypeAdapter(Annotated[Start | End, Field(discriminator="type")])


def read(text: str) -> Start | End:
    """A caller's text message. Raises MalformedBody for what is not JSON, InvalidRequest for what it says."""
    try:
        return _FROM_CALLER.validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        if problems[0]["type"] == "json_invalid":
            raise MalformedBody(f"expected a JSON message: {problems[0]['msg']}") from None
        told = [": ".join(filter(None, [_where(item["loc"]), item["msg"]])) for item in problems[:_MAX_PROBLEMS]]
        raise InvalidRequest("; ".join(told)) from None


def _where(location: tuple[int | str, ...]) -> str:
    """The field's name, without the name of the message that holds it."""
    return ".".join(str(part) for part in location[1:])
