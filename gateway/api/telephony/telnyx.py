"""Telnyx media streaming, bidirectional in RTP mode: `streaming_start`, or `<Stream>` of TeXML.

The order of chunks is not guaranteed: they are sorted within 60 ms.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.api.telephony.serializer import (
    CallEvent,
    Dtmf,
    Media,
    Played,
    Serializer,
    ServiceError,
    Start,
    Stop,
    audio_format,
    base64_text,
    json_object,
    json_text,
    payload,
    section,
    string,
    strings,
)
from gateway.errors import InvalidRequest
from gateway.telemetry.metrics import Api

# Chunks of 20 ms that wait for one that is missing.
_WINDOW = 3


class TelnyxSerializer(Serializer):
    """See Serializer."""

    service = Api.TELNYX
    key_header = "x-telnyx-streaming-auth-token"

    def __init__(self) -> None:
        self._order = _Order()

    def parse(self, message: str | bytes) -> Iterable[CallEvent]:
        """Translate a message."""
        fields = json_object(message)
        match fields.get("event"):
            case "media":
                media = section(fields, "media")
                if media.get("track", "inbound") == "inbound":
                    yield from map(Media, self._order.add(_number(media.get("chunk")), payload(media)))
            case "start":
                yield _start(section(fields, "start"))
            case "dtmf":
                yield Dtmf(string(section(fields, "dtmf"), "digit"))
            case "mark":
                yield Played(string(section(fields, "mark"), "name"))
            case "stop":
                yield from map(Media, self._order.rest())
                yield Stop()
            case "error":
                yield ServiceError(str(fields.get("payload"))[:200])

    def media(self, data: bytes) -> Iterable[str]:
        """Make one message of 20 ms or more."""
        yield json_text(event="media", media={"payload": base64_text(data)})

    def mark(self, name: str) -> Iterable[str]:
        """Make a mark."""
        yield json_text(event="mark", mark={"name": name})


class _Order:
    """Puts chunks in order. A missing one is given up when more than _WINDOW later ones are there."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._held: dict[int, bytes] = {}

    def add(self, number: int, data: bytes) -> Iterable[bytes]:
        """Return the chunks that are next, after one has arrived. Nothing for one that comes twice or too late."""
        if self._next is None:
            self._next = number
        if number >= self._next:
            self._held[number] = data
        while self._held:
            if self._next in self._held:
                yield self._held.pop(self._next)
                self._next += 1
            elif len(self._held) > _WINDOW:
                self._next = min(self._held)
            else:
                return

    def rest(self) -> Iterable[bytes]:
        """Return the chunks that still wait."""
        return [self._held[number] for number in sorted(self._held)]


def _number(chunk: object) -> int:
    try:
        return int(chunk)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest("expected chunk, a number") from None


def _start(start: dict[str, Any]) -> Start:
    form = section(start, "media_format")
    found = audio_format(string(form, "encoding"), form.get("sample_rate"))
    return Start(string(start, "call_control_id"), found, _parameters(start.get("custom_parameters")))


def _parameters(given: object) -> dict[str, str]:
    """Return custom parameters: an object, or a list of names and values as in `streaming_start`."""
    if isinstance(given, list):
        given = {str(item.get("name")): item.get("value") for item in given if isinstance(item, dict)}
    return strings(given)
