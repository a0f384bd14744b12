"""Twilio Media Streams, bidirectional: `<Connect><Stream>`. Other services speak it too, such as SignalWire.

Twilio reports an unknown event or field of ours as error 31951, so messages have exactly the fields of its protocol.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from gateway.api.telephony.serializer import (
    CallEvent,
    Dtmf,
    Media,
    Played,
    Serializer,
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
from gateway.settings import Settings
from gateway.telemetry.metrics import Api


class TwilioSerializer(Serializer):
    """See Serializer."""

    service = Api.TWILIO
    key_in_start = True

    def __init__(self) -> None:
        self._stream = ""

    @classmethod
    def secrets(cls, settings: Settings) -> list[str]:
        """Return the accounts' auth tokens."""
        return settings.twilio_auth_tokens

    @classmethod
    def signed(cls, headers: Headers, url: str, secret: str) -> bool:
        """Check `X-Twilio-Signature`: HMAC-SHA1 of the URL, with or without its port."""
        given = headers.get("x-twilio-signature", "").encode("latin-1")
        return any(hmac.compare_digest(_signature(form, secret), given) for form in (url, _without_port(url)))

    def parse(self, message: str | bytes) -> Iterable[CallEvent]:
        """Translate a message."""
        fields = json_object(message)
        match fields.get("event"):
            case "media":
                media = section(fields, "media")
                if media.get("track", "inbound") == "inbound":
                    yield Media(payload(media))
            case "start":
                yield self._start(section(fields, "start"))
            case "dtmf":
                yield Dtmf(string(section(fields, "dtmf"), "digit"))
            case "mark":
                yield Played(string(section(fields, "mark"), "name"))
            case "stop":
                yield Stop()

    def media(self, data: bytes) -> Iterable[str]:
        """Make one message of any length."""
        yield json_text(event="media", streamSid=self._stream, media={"payload": base64_text(data)})

    def mark(self, name: str) -> Iterable[str]:
        """Make a mark."""
        yield json_text(event="mark", streamSid=self._stream, mark={"name": name})

    def _start(self, start: dict[str, Any]) -> Start:
        self._stream = string(start, "streamSid")
        form = section(start, "mediaFormat")
        found = audio_format(string(form, "encoding"), form.get("sampleRate"))
        return Start(string(start, "callSid"), found, strings(start.get("customParameters")))


def _signature(url: str, secret: str) -> bytes:
    return b64encode(hmac.digest(secret.encode(), url.encode(), hashlib.sha1))


def _without_port(url: str) -> str:
    try:
        parts = urlsplit(url)
        has_port = parts.port is not None
    except ValueError:
        return url
    return parts._replace(netloc=parts.netloc.rpartition(":")[0]).geturl() if has_port else url
