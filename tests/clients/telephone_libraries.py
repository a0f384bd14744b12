"""The libraries of Twilio, Plivo and Vonage. Runs in an environment of its own.

Usage: telephone_libraries.py sign URL SECRET          what each service sends for a WebSocket at URL
       telephone_libraries.py check SERVICE URL SECRET VALUES    which of the header values a library accepts (JSON)
       telephone_libraries.py markup URL PARAMETERS    TwiML and Plivo XML that connect a call to URL

Prints one line of JSON.
"""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

import jwt
from plivo import plivoxml
from plivo.utils.signature_v3 import construct_get_url, get_signature_v3, validate_v3_signature
from twilio.request_validator import RequestValidator
from twilio.twiml.voice_response import Connect, VoiceResponse
from vonage_jwt import verify_signature

NONCE = "05429567804466091622"


def sign(url: str, secret: str) -> dict[str, Any]:
    claims = {"iat": int(time.time()), "jti": "1", "iss": "Vonage", "api_key": "k", "application_id": "a"}
    return {
        "twilio": {"X-Twilio-Signature": RequestValidator(secret).compute_signature(url, {})},
        "plivo": {
            "X-Plivo-Signature-V3-Nonce": NONCE,
            "X-Plivo-Signature-V3": get_signature_v3(
                secret, construct_get_url(url, {}).decode(), NONCE.encode()
            ).decode(),
        },
        "vonage": {"Authorization": f"Bearer {jwt.encode(claims, secret, algorithm='HS256')}"},
    }


def accepts(service: str, url: str, secret: str, value: str) -> bool:
    if service == "twilio":
        return bool(RequestValidator(secret).validate(url, {}, value))
    if service == "plivo":
        # The library takes http(s) only; Plivo's Stream SDKs pass the address of the upgrade request.
        forms = [re.sub("^ws", "http", url)]
        return any(validate_v3_signature("GET", form, NONCE, secret, value) for form in forms)
    try:
        return bool(verify_signature(value.removeprefix("Bearer "), secret))
    except Exception:
        return False


def markup(url: str, parameters: dict[str, str]) -> dict[str, str]:
    response, connect = VoiceResponse(), Connect()
    stream = connect.stream(url=url)
    for name, value in parameters.items():
        stream.parameter(name=name, value=value)
    response.append(connect)
    headers = ",".join(f"{name.replace('_', '')}={value}" for name, value in parameters.items())
    other = plivoxml.ResponseElement()
    options = {"bidirectional": True, "keepCallAlive": True, "contentType": "audio/x-mulaw;rate=8000"}
    other.add(plivoxml.StreamElement(url, extraHeaders=headers, **options))
    return {"twilio": str(response), "plivo": other.to_string()}


def main(command: str, *arguments: str) -> object:
    if command == "sign":
        return sign(*arguments)
    if command == "check":
        service, url, secret, values = arguments
        return [accepts(service, url, secret, value) for value in json.loads(values)]
    url, parameters = arguments
    return markup(url, json.loads(parameters))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
