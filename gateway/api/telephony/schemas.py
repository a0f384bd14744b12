"""The messages of the telephone services as they are published: what this server reads of them, and what it sends.

Services send further fields and events, which are ignored.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.api.asyncapi import Channel


class MediaFormat(BaseModel):
    """Format of both directions: `audio/x-mulaw`, `audio/x-alaw` or `audio/x-l16`."""

    encoding: str
    sampleRate: int  # noqa: N815


class Payload(BaseModel):
    """Audio in base64. Only the track `inbound` is used."""

    payload: str
    track: str = "inbound"


class Digit(BaseModel):
    """A key."""

    digit: str


class Named(BaseModel):
    """The name of a mark."""

    name: str


class Stop(BaseModel):
    """The call is over."""

    event: Literal["stop"]


class Dtmf(BaseModel):
    """The caller has pressed a key."""

    event: Literal["dtmf"]
    dtmf: Digit


class Mark(BaseModel):
    """All audio before a mark has been played."""

    event: Literal["mark"]
    mark: Named


class Media(BaseModel):
    """Audio of the caller."""

    event: Literal["media"]
    media: Payload


class TwilioCall(BaseModel):
    """`customParameters`: voice, prompt and sampling."""

    streamSid: str  # noqa: N815
    callSid: str  # noqa: N815
    mediaFormat: MediaFormat  # noqa: N815
    customParameters: dict[str, Any] = Field(default_factory=dict)  # noqa: N815


class TwilioStart(BaseModel):
    """The call begins."""

    event: Literal["start"]
    start: TwilioCall


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Audio(_Sent):
    """Audio in base64."""

    payload: str


class SentName(_Sent):
    """The name of a mark."""

    name: str


class TwilioSentMedia(_Sent):
    """Audio of the agent."""

    event: Literal["media"]
    streamSid: str  # noqa: N815
    media: Audio


class TwilioSentMark(_Sent):
    """A mark, about once a second."""

    event: Literal["mark"]
    streamSid: str  # noqa: N815
    mark: SentName


class TelnyxFormat(BaseModel):
    """Format of both directions: `PCMU`, `PCMA` or `L16`."""

    encoding: str
    sample_rate: int


class TelnyxCall(BaseModel):
    """`custom_parameters`: an object, or a list of names and values."""

    call_control_id: str
    media_format: TelnyxFormat
    custom_parameters: Any = None


class TelnyxStart(BaseModel):
    """The call begins."""

    event: Literal["start"]
    start: TelnyxCall


class TelnyxPayload(Payload):
    """Audio in base64, with the number of the chunk."""

    chunk: int | str


class TelnyxMedia(BaseModel):
    """Audio of the caller. Chunks out of order are sorted within 60 ms."""

    event: Literal["media"]
    media: TelnyxPayload


class TelnyxError(BaseModel):
    """An error of the service, which is logged."""

    event: Literal["error"]
    payload: Any = None


class TelnyxSentMedia(_Sent):
    """Audio of the agent."""

    event: Literal["media"]
    media: Audio


class TelnyxSentMark(_Sent):
    """A mark, about once a second."""

    event: Literal["mark"]
    mark: SentName


class PlivoCall(BaseModel):
    """A call."""

    streamId: str  # noqa: N815
    callId: str  # noqa: N815
    mediaFormat: MediaFormat  # noqa: N815


class PlivoStart(BaseModel):
    """The call begins. `extra_headers`: voice, prompt and sampling, as `name=value` with `,` or `;` between them."""

    event: Literal["start"]
    start: PlivoCall
    extra_headers: str | None = None


class PlivoPlayed(BaseModel):
    """All audio before a checkpoint has been played."""

    event: Literal["playedStream"]
    name: str


class PlivoAudio(_Sent):
    """Audio in base64, and its format."""

    contentType: str  # noqa: N815
    sampleRate: int  # noqa: N815
    payload: str


class PlivoSentAudio(_Sent):
    """Audio of the agent."""

    event: Literal["playAudio"]
    streamId: str  # noqa: N815
    media: PlivoAudio


class PlivoSentCheckpoint(_Sent):
    """A checkpoint, about once a second."""

    event: Literal["checkpoint"]
    streamId: str  # noqa: N815
    name: str


class VonageConnected(BaseModel):
    """The call begins. Other fields are the headers of the endpoint: voice, prompt and sampling."""

    model_config = ConfigDict(extra="allow")

    event: Literal["websocket:connected"]
    content_type: str = Field(alias="content-type", examples=["audio/l16;rate=24000"])
    uuid: str = ""


class VonageDtmf(BaseModel):
    """The caller has pressed a key."""

    event: Literal["websocket:dtmf"]
    digit: str | None = None
    dtmf: Digit | None = None


class VonageMark(BaseModel):
    """The name of a mark."""

    mark: str


class VonageNotify(BaseModel):
    """All audio before a mark has been played."""

    event: Literal["websocket:notify"]
    payload: VonageMark


class VonageSentNotify(_Sent):
    """A mark, about once a second."""

    action: Literal["notify"]
    payload: VonageMark


class AsteriskStart(BaseModel):
    """The call begins. `format`: `ulaw`, `alaw`, `slin`, `slin12`, `slin16`, `slin24`, `slin32` or `slin48`."""

    event: Literal["MEDIA_START"]
    format: str
    channel: str = ""


class AsteriskDtmf(BaseModel):
    """The caller has pressed a key."""

    event: Literal["DTMF_END"]
    digit: str


class AsteriskMark(BaseModel):
    """All audio before a mark has been played."""

    event: Literal["MEDIA_MARK_PROCESSED"]
    correlation_id: str


class AsteriskFlow(BaseModel):
    """Asterisk's queue is full, or has room again."""

    event: Literal["MEDIA_XOFF", "MEDIA_XON"]


class AsteriskSentMark(_Sent):
    """A mark, about once a second."""

    command: Literal["MARK_MEDIA"]
    correlation_id: str


class AsteriskSentAnswer(_Sent):
    """The models are ready: answer the call."""

    command: Literal["ANSWER"]


_L16 = "Audio of 16 bits, little-endian, in pieces of 20 ms"

CHANNELS = (
    Channel(
        "twilio",
        "/v1/telephony/twilio",
        "Twilio Media Streams, bidirectional.",
        client=(TwilioStart, Media, Dtmf, Mark, Stop),
        server=(TwilioSentMedia, TwilioSentMark),
    ),
    Channel(
        "telnyx",
        "/v1/telephony/telnyx",
        "Telnyx media streaming, bidirectional in RTP mode.",
        client=(TelnyxStart, TelnyxMedia, Dtmf, Mark, Stop, TelnyxError),
        server=(TelnyxSentMedia, TelnyxSentMark),
    ),
    Channel(
        "plivo",
        "/v1/telephony/plivo",
        "Plivo audio streaming, bidirectional.",
        client=(PlivoStart, Media, Dtmf, PlivoPlayed, Stop),
        server=(PlivoSentAudio, PlivoSentCheckpoint),
    ),
    Channel(
        "vonage",
        "/v1/telephony/vonage",
        "Vonage Voice API WebSockets. The end of a call is the close.",
        client=(VonageConnected, VonageDtmf, VonageNotify),
        server=(VonageSentNotify,),
        client_binary=_L16,
        server_binary=_L16,
    ),
    Channel(
        "asterisk",
        "/v1/telephony/asterisk",
        "Asterisk chan_websocket, with JSON control messages. The end of a call is the close.",
        client=(AsteriskStart, AsteriskDtmf, AsteriskMark, AsteriskFlow),
        server=(AsteriskSentMark, AsteriskSentAnswer),
        client_binary="Audio in the format of MEDIA_START",
        server_binary="One agent frame of 80 ms in the format of MEDIA_START",
    ),
)
