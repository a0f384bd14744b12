"""The libraries of telephone services, and Pipecat's serializers, as oracles of ours."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from gateway.api.telephony.call import SERIALIZERS
from gateway.audio import g711
from tests.clients.conftest import HERE, python_of, run_client
from tests.gateway.telephony.conftest import Serve, call
from tests.gateway.telephony.phones import PHONES, Audio, Phone, Plivo, Telnyx, Twilio, Vonage
from tests.gateway.websocket.conftest import Server

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

SECRET = "a-secret-of-32-bytes-or-a-few-more"
HOST = "wss://calls.example.com"
DOCS = HERE.parents[1] / "docs" / "api" / "telephony.md"


async def library(*arguments: str) -> Any:
    return await run_client(python_of("telephony"), "telephone_libraries.py", *arguments)


def phone_of(service: str) -> Phone:
    return next(kind for kind in PHONES if kind.service == service)()


async def is_accepted(server: Server, service: str, query: str, headers: dict[str, str]) -> bool:
    try:
        async with call(server, phone_of(service), query, additional_headers=headers) as caller:
            await caller.begin()
            await caller.until_audio(0.02)
            await caller.hang_up()
    except InvalidStatus as refused:
        if refused.response.status_code != 403:
            raise
        return False
    return True


@pytest.mark.parametrize("service", ["twilio", "plivo", "vonage"])
async def test_what_a_library_signs_is_accepted_and_what_we_accept_it_accepts(serve: Serve, service: str) -> None:
    secrets: dict[str, Any] = {
        "twilio_auth_tokens": [SECRET], "plivo_auth_tokens": [SECRET], "vonage_signature_secrets": [SECRET]
    }  # fmt: skip
    path = f"{HOST}/v1/telephony/{service}"
    urls = [
        path,
        f"{path}?voice=NATM1&seed=7",
        path.replace(".com", ".com:8443"),
        path.replace("wss", "https"),
        "wss://x/y",
    ]
    signed = [(await library("sign", url, secret))[service] for url in urls for secret in (SECRET, "another-" + SECRET)]
    ours, theirs = [], []
    async with serve(slots=8, public_url=HOST, **secrets) as server:
        for query in ("", "?voice=NATM1&seed=7"):
            (name,) = {name for headers in signed for name in headers if not name.endswith("Nonce")}
            values = json.dumps([headers[name] for headers in signed])
            theirs += await library("check", service, path + query, SECRET, values)
            ours += [await is_accepted(server, service, query, headers) for headers in signed]
    accepted = [number for number, found in enumerate(ours) if found]
    assert {0, len(signed) + 2} <= set(accepted), "what is signed for this URL is accepted"
    if service == "plivo":
        # Its library checks no address of a WebSocket.
        accepted = [number for number in accepted if number % len(signed) not in (0, 2)]
    assert all(theirs[number] for number in accepted)


@pytest.mark.parametrize("service", ["twilio", "telnyx", "plivo", "vonage"])
async def test_pipecat_reads_our_phones_and_sends_what_we_send(service: str) -> None:
    """Pipecat's serializers are made for the same side as ours."""
    phone: Phone = {"twilio": Twilio(), "telnyx": Telnyx(), "plivo": Plivo(), "vonage": Vonage("pcm_s16le", 8_000)}[
        service
    ]
    data = bytes(range(160)) if service != "vonage" else bytes(range(160)) * 2
    message = phone.media(data)
    audio = message if isinstance(message, str) else base64.b64encode(message).decode()
    found = await run_client(python_of("pipecat"), "pipecat_phones.py", service, audio, phone.dtmf("5"))
    assert base64.b64decode(found["heard"]) == (data if service == "vonage" else g711.decode(data, "ulaw"))
    assert found["key"] == "5"
    serializer = next(kind for kind in SERIALIZERS if kind.service == service)()
    (start,) = [event for one in phone.hello() for event in serializer.parse(one)]
    silence = bytes(1280) if service == "vonage" else b"\xff" * 640
    ours = list(serializer.media(silence))
    if service == "vonage":
        assert base64.b64decode(found["sent"]) == b"".join(one for one in ours if isinstance(one, bytes))
    else:
        assert [json.loads(one) for one in ours] == [json.loads(found["sent"])]
        assert phone.read(found["sent"]) == Audio(silence)
    assert start


async def test_the_examples_of_the_documentation_are_what_the_libraries_make() -> None:
    page = "".join(DOCS.read_text().split())
    made = await library(
        "markup", f"{HOST}/v1/telephony/twilio", json.dumps({"voice": "NATF0", "text_prompt": "You are Ana."})
    )
    assert "".join(made["twilio"].split("?>")[1].replace(" />", "/>").split()) in page
    made = await library(
        "markup", f"{HOST}/v1/telephony/plivo", json.dumps({"voice": "NATF0", "text_prompt": "You%20are%20Ana."})
    )
    assert "".join(made["plivo"].split()) in page
