"""Plivo audio streaming, bidirectional: `<Stream bidirectional="true">`."""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64encode
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, unquote

from starlette.datastructures import Headers

from gateway.api.telephony.serializer import (
    AudioFormat,
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
)
from gateway.settings import Settings
from gateway.telemetry.metrics import Api

_CONTENT_TYPES = {"ulaw": "audio/x-mulaw", "alaw": "audio/x-alaw", "pcm_s16le": "audio/x-l16"}
# Plivo may prefix the names of extra headers, as it does for SIP.
_HEADER_PREFIX = re.compile("^x-ph-", re.IGNORECASE)


class PlivoSerializer(Serializer):
    """See Serializer."""

    service = Api.PLIVO
    key_in_start = True

    def __init__(self) -> None:
        self._stream = ""
        self._format: AudioFormat

    @classmethod
    def secrets(cls, settings: Settings) -> list[str]:
        """Return the accounts' auth tokens."""
        return settings.plivo_auth_tokens

    @classmethod
    def signed(cls, headers: Headers, url: str, secret: str) -> bool:
        """Check `X-Plivo-Signature-V3`, one or several: HMAC-SHA256 of the URL and a nonce.

        The scheme that Plivo signs is not documented for WebSockets, so `https` is accepted in place of `wss`.
        """
        nonce = headers.get("x-plivo-signature-v3-nonce", "")
        given = headers.get("x-plivo-signature-v3", "").encode("latin-1").split(b",")
        forms = (url, re.sub("^ws", "http", url))
        expected = [_signature(form, nonce, secret) for form in forms]
        return any(hmac.compare_digest(one, other.strip()) for one in expected for other in given)

    def parse(self, message: str | bytes) -> Iterable[CallEvent]:
        """Translate a message."""
        fields = json_object(message)
        match fields.get("event"):
            case "media":
                media = section(fields, "media")
                if media.get("track", "inbound") == "inbound":
                    yield Media(payload(media))
            case "start":
                yield self._start(section(fields, "start"), fields.get("extra_headers"))
            case "dtmf":
                yield Dtmf(string(section(fields, "dtmf"), "digit"))
            case "playedStream":
                yield Played(string(fields, "name"))
            case "stop":
                yield Stop()

    def media(self, data: bytes) -> Iterable[str]:
        """Make one message of any length."""
        content_type = _CONTENT_TYPES[self._format.encoding]
        media = {"contentType": content_type, "sampleRate": self._format.rate, "payload": base64_text(data)}
        yield json_text(event="playAudio", streamId=self._stream, media=media)

    def mark(self, name: str) -> Iterable[str]:
        """Make a checkpoint."""
        yield json_text(event="checkpoint", streamId=self._stream, name=name)

    def _start(self, start: dict[str, Any], headers: object) -> Start:
        self._stream = string(start, "streamId")
        form = section(start, "mediaFormat")
        self._format = audio_format(string(form, "encoding"), form.get("sampleRate"))
        return Start(string(start, "callId"), self._format, _extra_headers(headers))


def _extra_headers(text: object) -> dict[str, str]:
    """Return the extra headers of a stream: `a=1;b=2` or `a=1,b=2`, values URL-encoded."""
    if not isinstance(text, str):
        return {}
    pairs = (pair.partition("=") for pair in re.split("[;,]", text.strip("{}")))
    return {_HEADER_PREFIX.sub("", name.strip()): unquote(value.strip()) for name, _, value in pairs}


def _signature(url: str, nonce: str, secret: str) -> bytes:
    path, _, query = url.partition("?")
    pairs = "&".join(f"{name}={value}" for name, value in sorted(parse_qsl(query, keep_blank_values=True)))
    signed = f"{path}{'?' if pairs else ''}{pairs}.{nonce}"
    return b64encode(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))
