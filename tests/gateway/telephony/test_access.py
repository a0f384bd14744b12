"""Who may call: signatures of services, API keys in headers and in the start of a call."""

from __future__ import annotations

import asyncio
import json
import logging
from base64 import b64encode
from typing import Any

import pytest
from starlette.datastructures import Headers
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.api.telephony import vonage
from gateway.api.telephony.plivo import PlivoSerializer
from gateway.api.telephony.twilio import TwilioSerializer
from tests.gateway.telephony.conftest import Serve, Server, call
from tests.gateway.telephony.phones import Asterisk, Phone, Plivo, Telnyx, Twilio, Vonage
from tests.gateway.telephony.test_calls import refusal

KEY = "s3cretkey"
PUBLIC = "wss://calls.example.com"
URL = {"public_url": PUBLIC}

# Made by `RequestValidator.compute_signature` of Twilio's own library, version 9.13.0.
TWILIO = {
    "wss://calls.example.com/v1/telephony/twilio": "nPhL41dgQSoz43512Q1wAzVkE+A=",
    "wss://calls.example.com:8443/v1/telephony/twilio": "AfySP0ArOiBbxYIbKD9Bhv89kaE=",
    "wss://calls.example.com/v1/telephony/twilio?a=1": "iGCu0HwY9+Ka2LKFciCFTs+ao9c=",
}
# By `get_signature_v3` of Plivo's, version 4.63.0, with the nonce 12345.
PLIVO = {
    "wss": "ZR8kPePwZql0j1VQEsq+gw2ZWa3lPt7L+hfts++yq+U=",
    "wss, query": "qu3/+dvoTz2Uxm/orzcuTgrKZPTyX9ujFoKRfcZFp0k=",
    "https": "YsTv1MgELe9yxjsIFkA4r/jE8+OBXImkyGSI6h82gb0=",
}
# By PyJWT, version 2.15.1.
ISSUED = 1764369000
VONAGE = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJpYXQiOjE3NjQzNjkwMDAsImp0aSI6IngiLCJpc3MiOiJWb25hZ2UiLCJhcGlfa2V5IjoiayJ9"
    ".hpmTQX368P2K28okDzQrdmiq4xB_icj46lQTghaL-Xw"
)


async def accepted(server: Server, phone: Phone, headers: dict[str, str], query: str = "", **parameters: str) -> None:
    async with call(server, phone, query, additional_headers=headers) as caller:
        await caller.begin(**parameters)
        await caller.until_audio(0.02)
        await caller.hang_up()


async def denied(server: Server, phone: Phone, headers: dict[str, str]) -> int:
    status, _, _ = await refusal(server, phone, additional_headers=headers)
    assert server.runtime.admission.taken == 0
    return status


async def test_twilio_signs_the_url(serve: Serve) -> None:
    async with serve(twilio_auth_tokens=["other", "tw-token"], api_keys=[KEY], **URL) as server:
        plain, with_port, with_query = TWILIO.values()
        await accepted(server, Twilio(), {"X-Twilio-Signature": plain})
        await accepted(server, Twilio(), {"X-Twilio-Signature": with_query}, "?a=1")
        wrong = ["", plain[:-2] + "8=", plain.lower(), with_query, with_port, "é"]
        for signature in wrong:
            assert await denied(server, Twilio(), {"X-Twilio-Signature": signature}) == 403
        # An API key is no signature.
        assert await denied(server, Twilio(), {"Authorization": f"Bearer {KEY}"}) == 403


async def test_the_port_may_be_missing_in_what_twilio_signs(serve: Serve) -> None:
    plain, with_port, _ = TWILIO.values()
    async with serve(twilio_auth_tokens=["tw-token"], public_url="wss://calls.example.com:8443") as server:
        await accepted(server, Twilio(), {"X-Twilio-Signature": with_port})
        await accepted(server, Twilio(), {"X-Twilio-Signature": plain})


async def test_the_host_header_is_the_address_without_a_public_url(serve: Serve) -> None:
    plain, *_ = TWILIO.values()
    headers = {"X-Twilio-Signature": plain}
    async with serve(twilio_auth_tokens=["tw-token"]) as server:
        at: dict[str, Any] = {"host": "127.0.0.1", "port": int(server.url.rsplit(":", 1)[1]), "proxy": None}
        async with connect("ws://calls.example.com/v1/telephony/twilio", additional_headers=headers, **at):
            pass
        with pytest.raises(InvalidStatus, match="403"):
            await connect("ws://elsewhere.example.com/v1/telephony/twilio", additional_headers=headers, **at)


@pytest.mark.parametrize("host", ["calls.example.com:x", "calls.example.com:99999", "[", "", "é"])
def test_a_host_that_is_none_has_no_valid_signature(host: str) -> None:
    headers = Headers({"X-Twilio-Signature": TWILIO["wss://calls.example.com/v1/telephony/twilio"]})
    assert not TwilioSerializer.signed(headers, f"wss://{host}/v1/telephony/twilio", "tw-token")
    headers = Headers({"X-Plivo-Signature-V3": PLIVO["wss"], "X-Plivo-Signature-V3-Nonce": "12345"})
    assert not PlivoSerializer.signed(headers, f"wss://{host}/v1/telephony/plivo", "pl-token")


async def test_plivo_signs_the_url_and_a_nonce(serve: Serve) -> None:
    async with serve(plivo_auth_tokens=["pl-token"], **URL) as server:
        nonce = {"X-Plivo-Signature-V3-Nonce": "12345"}
        for signature in (PLIVO["wss"], PLIVO["https"], f"other, {PLIVO['wss']}"):
            await accepted(server, Plivo(), {**nonce, "X-Plivo-Signature-V3": signature})
        await accepted(server, Plivo(), {**nonce, "X-Plivo-Signature-V3": PLIVO["wss, query"]}, "?voice=NATM1&seed=7")
        for headers in (
            {},
            {"X-Plivo-Signature-V3": PLIVO["wss"]},
            {**nonce, "X-Plivo-Signature-V3": ""},
            {**nonce, "X-Plivo-Signature-V3": PLIVO["wss, query"]},
            {"X-Plivo-Signature-V3-Nonce": "12346", "X-Plivo-Signature-V3": PLIVO["wss"]},
        ):
            assert await denied(server, Plivo(), headers) == 403


async def test_vonage_sends_a_token_that_is_signed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    now = ISSUED + 200.0
    monkeypatch.setattr(vonage.time, "time", lambda: now)
    async with serve(vonage_signature_secrets=["vo-secret"], api_keys=[KEY]) as server:
        await accepted(server, Vonage(), {"Authorization": f"Bearer {VONAGE}"})
        head, claims, signature = VONAGE.split(".")
        none = b64encode(b'{"alg":"none"}').decode().rstrip("=")
        for token in (
            "", "x", "a.b.c", f"{none}.{claims}.", f"{none}.{claims}.{signature}", f"{head}.{claims}.{signature[:-3]}",
            f"{head}.{claims[:-4]}.{signature}", f"{head}.{claims}.{signature}.{signature}", KEY, "é.é.é", "..",
        ):  # fmt: skip
            assert await denied(server, Vonage(), {"Authorization": f"Bearer {token}"}) == 403
        assert await denied(server, Vonage(), {}) == 403
        for seconds in (301, -301):
            now = ISSUED + seconds
            assert await denied(server, Vonage(), {"Authorization": f"Bearer {VONAGE}"}) == 403


@pytest.mark.parametrize(
    ("phone", "headers"),
    [
        (Twilio(), {"X-API-Key": KEY}),
        (Telnyx(), {"x-telnyx-streaming-auth-token": KEY}),
        (Vonage(), {"Authorization": f"Bearer {KEY}"}),
        (Asterisk(), {"Authorization": "Basic " + b64encode(f"user:{KEY}".encode()).decode()}),
    ],
    ids=lambda value: getattr(value, "service", ""),
)
async def test_an_api_key_in_a_header(serve: Serve, phone: Phone, headers: dict[str, str]) -> None:
    async with serve(api_keys=[KEY]) as server:
        await accepted(server, type(phone)(), headers)
        wrong = {name: value.replace(KEY, "wrong") for name, value in headers.items()}
        if isinstance(phone, Asterisk):
            wrong = {"Authorization": "Basic " + b64encode(b"user:wrong").decode()}
        assert await denied(server, phone, wrong) == 401
        if not isinstance(phone, Twilio):
            assert await denied(server, phone, {}) == 401


@pytest.mark.parametrize("kind", [Twilio, Plivo])
async def test_an_api_key_as_a_parameter(serve: Serve, kind: type[Phone]) -> None:
    """These services cannot set headers. The slot is taken once the key is known."""
    async with serve(api_keys=[KEY], slots=1) as server:
        async with call(server, kind()) as caller:
            assert server.runtime.admission.taken == 0
            await caller.begin(api_key=KEY)
            await caller.until_audio(0.02)
            async with call(server, kind()) as second:
                await second.begin(api_key=KEY)
                await second.until_closed()
                assert (second.code, "taken" in second.reason) == (1013, True)
            await caller.hang_up()
        await server.until_free()
        attempts: list[dict[str, Any]] = [{}, {"api_key": "wrong"}]
        for parameters in attempts:
            async with call(server, kind()) as caller:
                await caller.begin(**parameters)
                await caller.until_closed()
                assert (caller.code, "API key" in caller.reason) == (1008, True)
        async with call(server, kind(), f"?api_key={KEY}") as caller:
            await caller.begin()
            await caller.until_closed()
            assert caller.code == 1008


async def test_a_key_holds_its_number_of_calls(serve: Serve) -> None:
    headers = {"x-telnyx-streaming-auth-token": KEY}
    async with serve(api_keys=[KEY], key_conversations=1) as server:
        async with call(server, Telnyx(), additional_headers=headers) as caller:
            await caller.begin()
            await caller.until_audio(0.02)
            assert (await refusal(server, Telnyx(), additional_headers=headers))[0] == 429
            await caller.hang_up()
        await server.until_free()
        await accepted(server, Telnyx(), headers)


async def test_without_secrets_and_keys_the_server_is_open(server: Server, phone: Phone) -> None:
    """As all APIs. A signature that cannot be checked changes nothing."""
    await accepted(server, phone, {"X-Twilio-Signature": "x"})


async def test_a_refused_handshake_logs_no_error(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "uvicorn.error")
    async with serve(api_keys=[KEY]) as server:
        assert await denied(server, Telnyx(), {}) == 401
        await asyncio.sleep(0.05)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_refusals_say_what_was_expected(serve: Serve) -> None:
    async with serve(twilio_auth_tokens=["tw-token"], **URL) as server:
        _, problem, _ = await refusal(server, Twilio())
        assert f"{PUBLIC}/v1/telephony/twilio" in problem["detail"]
        assert "tw-token" not in json.dumps(problem)
