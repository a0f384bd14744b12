"""The events of a telephone call, and the base of the serializers that translate each service's messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic_core import from_json, to_json
from starlette.datastructures import Headers

from gateway.audio.duplex import Encoding
from gateway.errors import InvalidRequest
from gateway.settings import Settings
from gateway.telemetry.metrics import Api

FRAMES_PER_SECOND = 50
"""Telephone services send and expect audio in frames of 20 ms."""

_ENCODINGS: dict[str, Encoding] = {
    "audio/x-mulaw": "ulaw",
    "audio/pcmu": "ulaw",
    "pcmu": "ulaw",
    "audio/x-alaw": "alaw",
    "audio/pcma": "alaw",
    "pcma": "alaw",
    "audio/x-l16": "pcm_s16le",
    "audio/l16": "pcm_s16le",
    "l16": "pcm_s16le",
}
_G711_RATE = 8_000
_MIN_RATE, _MAX_RATE = 8_000, 48_000


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """Format of both directions. `frame_bytes`: size of 20 ms."""

    encoding: Encoding
    rate: int

    @property
    def sample_bytes(self) -> int:
        return 2 if self.encoding == "pcm_s16le" else 1

    @property
    def frame_bytes(self) -> int:
        return self.rate // FRAMES_PER_SECOND * self.sample_bytes


@dataclass(frozen=True, slots=True)
class Start:
    """The call begins. `call`: its id at the service. `parameters`: what the operator of the call has set."""

    call: str
    format: AudioFormat
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Media:
    """Audio of the caller."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Dtmf:
    """The caller has pressed a key."""

    digit: str


@dataclass(frozen=True, slots=True)
class Played:
    """All audio before a mark has been played to the caller."""

    mark: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The call is over."""


@dataclass(frozen=True, slots=True)
class ServiceError:
    """The service reports an error. The call goes on."""

    message: str


CallEvent = Start | Media | Dtmf | Played | Stop | ServiceError


class Serializer(ABC):
    """The messages of one service on one connection."""

    service: ClassVar[Api]
    """Name in the route and in logs."""
    subprotocol: ClassVar[str | None] = None
    """WebSocket subprotocol that the service offers and expects."""
    key_header: ClassVar[str | None] = None
    """Header in which the service can send an API key, besides those of all APIs."""
    key_in_start: ClassVar[bool] = False
    """Whether an API key may come as the parameter `api_key` of the start, from a service that cannot set headers."""

    @classmethod
    def secrets(cls, _settings: Settings) -> list[str]:
        """Return the secrets that the service's signatures are made with; none if they are not checked."""
        return []

    @classmethod
    def signed(cls, _headers: Headers, _url: str, _secret: str) -> bool:
        """Return whether an opening handshake to `url` carries a valid signature."""
        return False

    @abstractmethod
    def parse(self, message: str | bytes) -> Iterable[CallEvent]:
        """Translate a message; unknown ones are ignored. Raises InvalidRequest for what is not of the protocol."""

    @abstractmethod
    def media(self, data: bytes) -> Iterable[str | bytes]:
        """Make the messages that carry agent audio: whole frames of 20 ms."""

    @abstractmethod
    def mark(self, name: str) -> Iterable[str]:
        """Make the message of a mark, which comes back as Played, if the service has marks."""

    def answer(self) -> Iterable[str]:
        """Make the message that answers the call, if the service leaves that to the server."""
        return ()


def audio_format(encoding: str, rate: object) -> AudioFormat:
    """Translate a format by the names of the services. Raises InvalidRequest if this server cannot use it."""
    known = _ENCODINGS.get(encoding.lower())
    if known is None:
        raise InvalidRequest(f"expected μ-law, A-law or L16 audio, got {encoding[:50]!r}")
    return checked_format(known, rate)


def checked_format(encoding: Encoding, rate: object) -> AudioFormat:
    """Return a format. Raises InvalidRequest if this server cannot use its rate."""
    if not isinstance(rate, int) or isinstance(rate, bool) or not _MIN_RATE <= rate <= _MAX_RATE:
        raise InvalidRequest(f"expected {_MIN_RATE} to {_MAX_RATE} samples per second, got {str(rate)[:50]}")
    if rate % FRAMES_PER_SECOND or (encoding != "pcm_s16le" and rate != _G711_RATE):
        raise InvalidRequest(f"{encoding} audio at {rate} samples per second is not supported")
    return AudioFormat(encoding, rate)


def json_object(message: str | bytes) -> dict[str, Any]:
    """Parse a text message. Raises InvalidRequest."""
    if isinstance(message, bytes):
        raise InvalidRequest("expected a text message, got binary data")
    try:
        fields = from_json(message, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"expected JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("expected a JSON object")
    return fields


def json_text(**fields: object) -> str:
    """Render a message."""
    return to_json(fields).decode()


def section(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object of a message. Raises InvalidRequest."""
    value = fields.get(name)
    if not isinstance(value, dict):
        raise InvalidRequest(f"expected {name}, an object")
    return value


def string(fields: dict[str, Any], name: str) -> str:
    """Return a string of a message. Raises InvalidRequest."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"expected {name}, a string")
    return value


def payload(media: dict[str, Any]) -> bytes:
    """Decode the audio of a message. Raises InvalidRequest."""
    try:
        return a2b_base64(string(media, "payload"), strict_mode=True)
    except ValueError as error:
        raise InvalidRequest(f"expected a payload in base64: {error}") from None


def base64_text(data: bytes) -> str:
    """Encode audio."""
    return b2a_base64(data, newline=False).decode("ascii")


def strings(fields: object) -> dict[str, str]:
    """Return the fields of an object that are strings, numbers or booleans, as strings."""
    if not isinstance(fields, dict):
        return {}
    return {
        name: value if isinstance(value, str) else to_json(value).decode()
        for name, value in fields.items()
        if isinstance(value, str | int | float)
    }
