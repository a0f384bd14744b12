"""The API reference names every message, field, error code and close code of each API."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from gateway import errors as gateway_errors
from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.openai import errors as openai_errors
from gateway.session.events import Reason
from tests.gateway.schemas import CHANNELS, types
from tests.gateway.test_errors import OURS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "api"
TELEPHONES = ("twilio", "telnyx", "plivo", "vonage", "asterisk")
PAGES = {"converse": "websocket", "live": "live", "realtime": "realtime", **dict.fromkeys(TELEPHONES, "telephony")}
"""Of each channel with JSON messages."""
COMMAND_LINE = (gateway_errors.RepositoryError, gateway_errors.NameNotAllowed, gateway_errors.NameTaken)
"""Errors that no API reports."""


def names(page: str) -> set[str]:
    """All words in inline code. One that begins with a dot takes the place of the end of the one before."""
    found: set[str] = set()
    for line in (DOCS / f"{page}.md").read_text().splitlines():
        before = ""
        for code in re.findall(r"`([^`]+)`", line):
            if re.fullmatch(r"\.[a-z_.]+", code):
                code = before.rsplit(".", code.count("."))[0] + code
            before = code
            found |= {code, *re.findall(r"[\w.:/-]+", code)}
    return found


def fields(message: Descriptor) -> set[str]:
    return {field.name for field in message.fields}


@pytest.mark.parametrize("channel", PAGES)
def test_every_message_is_named(channel: str) -> None:
    assert {channel.name for channel in CHANNELS} == {*PAGES, "chat", "gated-chat"}
    page = names(PAGES[channel])
    for action in ("receive", "send"):
        assert types(channel, action) - page == set()


def test_every_field_of_grpc_is_named() -> None:
    messages = [
        pb.ConverseRequest, pb.Start, pb.ConverseResponse, pb.Ready, pb.Audio, pb.Warning, pb.Stats, pb.Ended,
        pb.RespondRequest, pb.RespondResponse, pb.RespondChunk, pb.Sampling,
    ]  # fmt: skip
    page = names("grpc")
    for message in messages:
        assert fields(message.DESCRIPTOR) - page == set(), message.DESCRIPTOR.name
    reasons = {value.name.removeprefix("END_REASON_") for value in pb.EndReason.DESCRIPTOR.values}
    assert reasons - {"UNSPECIFIED"} - page == set()
    assert {error.grpc_status for error in OURS} - page == set()


@pytest.mark.parametrize("page", ["live", "realtime"])
def test_every_error_of_the_openai_apis_is_named(page: str) -> None:
    codes = {code for _, _, code in openai_errors._CODES} | {code for code, _, _ in openai_errors._ENDS.values()}
    shared = "client_events", "channel", "config", "endpoint"
    sources = [*shared, *(path.stem for path in (ROOT / "gateway/api/openai").glob(f"{page}*.py"))]
    for source in sources:
        text = (ROOT / "gateway/api/openai" / f"{source}.py").read_text()
        codes |= set(re.findall(r'(?:\w*Error|Notice|_send_info)\(\s*"(\w+)"', text))
    # The Realtime API cannot be resumed; the size of a message is stated by the close code alone.
    only_live = {"session_not_found", "session_taken_over"} if page == "realtime" else set()
    assert codes - names(page) - only_live - {"message_too_large"} == set()


def test_every_error_of_the_rest_api_and_of_converse_is_named() -> None:
    known = {error.code for error in OURS if error not in COMMAND_LINE} - {gateway_errors.GatewayError.code}
    websocket = names("websocket")
    assert known - names("rest") - {"handshake-timeout", "slow-client", "taken-over"} == set()
    assert known - websocket - {"upload-timeout", "upload-budget-exceeded", "conversation-busy"} == set()
    assert set(Reason) - {Reason.DISCONNECTED} - websocket == set()


@pytest.mark.parametrize("page", ["websocket", "moshi", "live", "realtime", "telephony"])
def test_every_close_code_is_named(page: str) -> None:
    """Only `/v1/converse` closes with 1003, and the OpenAI APIs do not close for a message that cannot be used."""
    others = {"websocket": set(), "live": {1003, 1007}, "realtime": {1003, 1007}}
    codes = {1000} | {error.close_code for error in OURS} - others.get(page, {1003})
    named = set(re.findall(r"\b1\d{3}\b", (DOCS / f"{page}.md").read_text()))
    assert set(map(str, codes)) - named == set()
