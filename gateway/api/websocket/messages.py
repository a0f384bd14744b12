"""The JSON messages of `/v1/converse`, in both directions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gateway.audio.decode import MAX_RATE, MIN_RATE
from gateway.audio.stream import PcmFormat
from gateway.errors import InvalidRequest, MalformedBody
from gateway.session.params import LiveParams

# At most this many problems of a message are reported.
_MAX_PROBLEMS = 5


class AudioParams(BaseModel):
    """Format of the client's binary messages. The agent's have the same format, at the model's rate."""

    model_config = ConfigDict(extra="forbid")

    format: PcmFormat = "pcm_s16le"
    sample_rate: int = Field(default=24_000, ge=MIN_RATE, le=MAX_RATE)


class Start(LiveParams):
    """The first message: the parameters of the session."""

    type: Literal["start"]
    audio: AudioParams = AudioParams()


class End(BaseModel):
    """End of the client's audio."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["end"]


class AudioFormat(BaseModel):
    """Format of the agent's binary messages."""

    format: PcmFormat
    sample_rate: int


class Resume(BaseModel):
    """How to resume the session when the connection is lost. `seconds`: how long it waits for that."""

    token: str
    seconds: float


class Ready(BaseModel):
    """The models hold the prompt; the agent's next frame follows, whose number is `index`.

    `missed_text`: of the frames that were not sent before the session was resumed.
    """

    type: Literal["ready"] = "ready"
    conversation_id: str
    voice: str
    seed: int
    audio: AudioFormat
    frame_size: int
    setup_ms: float
    resume: Resume | None = None
    index: int = 0
    missed_text: str = ""


class Text(BaseModel):
    """Text of frame `index`, whose audio comes next."""

    type: Literal["text"] = "text"
    index: int
    text: str


class Stats(BaseModel):
    """Statistics, about once a second. `latency_ms`: the maximum since the last stats."""

    type: Literal["stats"] = "stats"
    index: int
    latency_ms: float
    dropped_frames: int
    queued_ms: float


class Warning(BaseModel):
    """A condition the client should know about."""

    type: Literal["warning"] = "warning"
    code: str
    message: str
    seconds_left: float | None = None


class Error(BaseModel):
    """Why the session was refused or failed."""

    type: Literal["error"] = "error"
    code: str
    message: str


class Ended(BaseModel):
    """The last message: reason and totals."""

    type: Literal["ended"] = "ended"
    reason: str
    message: str
    frames: int
    seconds: float
    transcript: str
    dropped_frames: int
    late_frames: int


_FROM_CLIENT: TypeAdapter[Start | End] = TypeAdapter(Annotated[Start | End, Field(discriminator="type")])


def read(text: str) -> Start | End:
    """Parse a client's text message. Raises MalformedBody if it is not JSON, InvalidRequest for its content."""
    try:
        return _FROM_CLIENT.validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        if problems[0]["type"] == "json_invalid":
            raise MalformedBody(f"expected a JSON message: {problems[0]['msg']}") from None
        reported = [": ".join(filter(None, [_where(item["loc"]), item["msg"]])) for item in problems[:_MAX_PROBLEMS]]
        raise InvalidRequest("; ".join(reported)) from None


def _where(location: tuple[int | str, ...]) -> str:
    """Return the name of the field, without that of its message."""
    return ".".join(str(part) for part in location[1:])
