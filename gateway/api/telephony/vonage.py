"""Vonage Voice API WebSockets: an NCCO `connect` to an endpoint of type `websocket`.

The first message is text; then audio comes and goes as binary messages of 20 ms.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterable
from typing import Any

from pydantic_core import from_json
from starlette.datastructures import Headers

from gateway.api.telephony.serializer import (
    AudioFormat,
    CallEvent,
    Dtmf,
    Media,
    Played,
    Serializer,
    Start,
    audio_format,
    json_object,
    json_text,
    strings,
)
from gateway.errors import InvalidRequest
from gateway.settings import Settings
from gateway.telemetry.metrics import Api

# A token is made for one request. Five minutes allow for clocks that differ.
_TOKEN_AGE_S = 300
_CONTENT_TYPE = re.compile(r"(audio/l16)\s*;\s*rate=(\d{1,6})", re.IGNORECASE)


class VonageSerializer(Serializer):
    """See Serializer. The end of a call is the close of the connection."""

    service = Api.VONAGE

    def __init__(self) -> None:
        self._format: AudioFormat | None = None

    @classmethod
    def secrets(cls, settings: Settings) -> list[str]:
        """Return the accounts' signature secrets."""
        return settings.vonage_signature_secrets

    @classmethod
    def signed(cls, headers: Headers, _url: str, secret: str) -> bool:
        """Check the JSON Web Token (HS256) of `"authorization": {"type": "vonage"}`, not older than five minutes."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and _valid_token(token.strip(), secret, time.time())

    def parse(self, message: str | bytes) -> Iterable[CallEvent]:
        """Translate a message."""
        if isinstance(message, bytes):
            yield Media(message)
            return
        fields = json_object(message)
        match fields.get("event"):
            case "websocket:connected":
                self._format = _format(fields.get("content-type"))
                yield Start(str(fields.get("uuid", "")), self._format, strings(fields))
            case "websocket:dtmf":
                digit = fields.get("digit")
                if digit is None and isinstance(nested := fields.get("dtmf"), dict):
                    digit = nested.get("digit")
                yield Dtmf(str(digit))
            case "websocket:notify" if isinstance(payload := fields.get("payload"), dict):
                yield Played(str(payload.get("mark")))

    def media(self, data: bytes) -> Iterable[bytes]:
        """Make one message per 20 ms."""
        assert self._format is not None  # noqa: S101 (media follows the start)
        size = self._format.frame_bytes
        return (data[at : at + size] for at in range(0, len(data), size))

    def mark(self, name: str) -> Iterable[str]:
        """Ask for a notification."""
        yield json_text(action="notify", payload={"mark": name})


def _format(content_type: object) -> AudioFormat:
    found = _CONTENT_TYPE.fullmatch(content_type) if isinstance(content_type, str) else None
    if found is None:
        raise InvalidRequest(f"expected content-type audio/l16;rate=RATE, got {str(content_type)[:50]!r}")
    return audio_format(found[1], int(found[2]))


def _valid_token(token: str, secret: str, now: float) -> bool:
    """Return whether a JSON Web Token (RFC 7519) is signed with `secret` and was issued a short time ago."""
    signed, _, signature = token.rpartition(".")
    try:
        header, claims = (_decoded(part) for part in signed.split("."))
        mac = urlsafe_b64decode(_padded(signature))
        if header["alg"] != "HS256" or not hmac.compare_digest(
            hmac.digest(secret.encode(), signed.encode(), hashlib.sha256), mac
        ):
            return False
        return bool(abs(now - claims["iat"]) <= _TOKEN_AGE_S and now < claims.get("exp", now + 1))
    except (ValueError, KeyError, TypeError):
        return False


def _decoded(part: str) -> dict[str, Any]:
    fields = from_json(urlsafe_b64decode(_padded(part)))
    if not isinstance(fields, dict):
        raise ValueError("expected an object")
    return fields


def _padded(part: str) -> str:
    return part + "=" * (-len(part) % 4)
