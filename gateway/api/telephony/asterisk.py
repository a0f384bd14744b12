"""Asterisk's channel driver chan_websocket, which connects to this server: `Dial(WebSocket/…)`.

Chosen over AudioSocket, which has neither TLS nor authentication, needs a TCP port of its own, and leaves the timing of
audio to the application. Control messages are JSON or plain text; commands have the form of the first event.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.api.telephony.serializer import (
    AudioFormat,
    CallEvent,
    Dtmf,
    Media,
    Played,
    Serializer,
    Start,
    checked_format,
    json_object,
    json_text,
    strings,
)
from gateway.audio.duplex import Encoding
from gateway.errors import InvalidRequest
from gateway.telemetry.metrics import Api

_LINEAR = {"slin": 8_000, "slin12": 12_000, "slin16": 16_000, "slin24": 24_000, "slin32": 32_000, "slin48": 48_000}
_LAWS: dict[str, Encoding] = {"ulaw": "ulaw", "alaw": "alaw"}


class AsteriskSerializer(Serializer):
    """See Serializer. The end of a call is the close of the connection."""

    service = Api.ASTERISK
    subprotocol = "media"

    def __init__(self) -> None:
        self._json = False
        self._paused = False

    def parse(self, message: str | bytes) -> Iterable[CallEvent]:
        """Translate a message."""
        if isinstance(message, bytes):
            yield Media(message)
            return
        is_json = message.startswith("{")
        fields = strings(json_object(message)) if is_json else _plain(message)
        match fields.get("event"):
            case "MEDIA_START":
                self._json = is_json
                yield Start(fields.get("channel", ""), _format(fields.get("format", "")), {})
            case "DTMF_END":
                yield Dtmf(fields.get("digit", ""))
            case "MEDIA_MARK_PROCESSED":
                yield Played(fields.get("correlation_id", ""))
            case "MEDIA_XOFF":
                self._paused = True
            case "MEDIA_XON":
                self._paused = False

    def media(self, data: bytes) -> Iterable[bytes]:
        """Make one message; none while Asterisk's queue is full, which would drop it."""
        return () if self._paused else (data,)

    def mark(self, name: str) -> Iterable[str]:
        """Make a mark. Versions with plain text only have none."""
        return (json_text(command="MARK_MEDIA", correlation_id=name),) if self._json else ()

    def answer(self) -> Iterable[str]:
        """Answer the channel, which the option `n` of the dial string leaves to the application."""
        yield json_text(command="ANSWER") if self._json else "ANSWER"


def _plain(message: str) -> dict[str, str]:
    """Parse `EVENT name:value name:value`."""
    event, *pairs = message.split(" ")
    return {"event": event, **dict(pair.partition(":")[::2] for pair in pairs)}


def _format(name: str) -> AudioFormat:
    if name in _LINEAR:
        return checked_format("pcm_s16le", _LINEAR[name])
    if name in _LAWS:
        return checked_format(_LAWS[name], 8_000)
    raise InvalidRequest(f"expected the format ulaw, alaw or {', '.join(_LINEAR)}, got {name[:50]!r}")
