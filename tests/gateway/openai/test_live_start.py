"""`session.start`: how a configuration is resolved, and how it is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.api.openai.config import BUILT_IN_VOICES, MAX_CONFIG_CHARACTERS
from gateway.api.openai.live_config import SessionConfig
from gateway.session.persona import SYSTEM_PROMPTS
from tests.gateway.openai.conftest import PATH, Caller, Serve, Server, call
from tests.gateway.openai.types import session_fields, voices

KEY = "s3cret-key"
LIVEKIT: dict[str, Any] = {
    "model": "gpt-live-1",
    "instructions": "You are Ana.",
    "audio": {"format": {"type": "audio/pcm", "rate": 24000}, "output": {"voice": "marin"}},
    "delegation": {"type": "responses", "responses": {"model": "gpt-5.6-luna"}},
}
TOOLS = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
HISTORY = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}], "status": "completed"},
    {"role": "developer", "content": [{"text": "Be brief."}]},
]


def test_every_field_and_voice_of_the_api_is_known() -> None:
    """A later version of openai-python may have others."""
    assert set(SessionConfig.model_fields) == session_fields()
    assert voices() <= BUILT_IN_VOICES


async def infos(caller: Caller) -> list[str]:
    await caller.close()
    return [event["code"] for event in caller.of("info")]


async def test_livekits_defaults_are_resolved(caller: Caller) -> None:
    session = await caller.start(**LIVEKIT)
    assert session["model"] == "personaplex"
    assert session["instructions"] == "You are Ana."
    assert session["audio"] == {"format": {"type": "audio/pcm", "rate": 24000}, "output": {"voice": "NATF0"}}
    assert session["delegation"] == LIVEKIT["delegation"]
    assert (session["input"], session["store"], session["triggers"]) == ([], False, [])
    assert await infos(caller) == ["voice_substituted", "delegation_unavailable"]


async def test_the_least_configuration_has_the_defaults_of_the_server(server: Server, caller: Caller) -> None:
    session = await caller.start(model="personaplex", instructions=" \n")
    assert session["instructions"] == SYSTEM_PROMPTS["assistant"]
    assert session["audio"] == {"format": {"type": "audio/pcm", "rate": 24000}, "output": {"voice": "NATF0"}}
    assert session["delegation"] == {"type": "client"}
    assert await infos(caller) == []


@pytest.mark.parametrize("voice", ["NATM1", {"id": "NATM1"}])
async def test_a_voice_is_chosen_by_name_or_id(server: Server, caller: Caller, voice: object) -> None:
    session = await caller.start(audio={"output": {"voice": voice}})
    assert session["audio"]["output"] == {"voice": "NATM1"}
    assert await infos(caller) == []


async def test_nulls_and_history_are_accepted(caller: Caller) -> None:
    """A redial of LiveKit carries the conversation so far."""
    nulls = dict.fromkeys(["instructions", "audio", "delegation", "store", "safety_identifier", "triggers", "client"])
    session = await caller.start(**nulls, input=HISTORY)
    assert session["input"] == []
    assert await infos(caller) == ["history_ignored"]


async def test_delays_and_identifiers_are_echoed(caller: Caller) -> None:
    delegation = {"type": "client", "acknowledgement_delay_ms": 200}
    session = await caller.start(delegation=delegation, safety_identifier="user-1")
    assert session["delegation"] == delegation
    assert session["safety_identifier"] == "user-1"


async def test_tools_are_accepted_by_setting(serve: Serve) -> None:
    delegation = {"type": "responses", "responses": {"model": "m", "tools": TOOLS}}
    async with serve(openai_accept_tools=True) as server, call(server) as caller:
        session = await caller.start(delegation=delegation)
        assert session["delegation"]["responses"]["tools"] == TOOLS
        assert await infos(caller) == ["delegation_unavailable"]


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"model": "gpt-4o"}, "invalid_request_error", "model_not_found", "session.model"),
    ({"model": 7}, "invalid_request_error", "invalid_value", "session.model"),
    ({"voice": "marin"}, "invalid_request_error", "unknown_parameter", "session.voice"),
    ({"audio": {"output": {"speed": 1}}}, "invalid_request_error", "unknown_parameter", "session.audio.output.speed"),
    (
        {"audio": {"output": {"voice": "nobody"}}},
        "invalid_request_error", "invalid_value", "session.audio.output.voice",
    ),
    (
        {"audio": {"output": {"voice": {"id": ""}}}},
        "invalid_request_error", "invalid_value", "session.audio.output.voice",
    ),
    (
        {"audio": {"format": {"type": "audio/pcm", "rate": 48000}}},
        "invalid_request_error", "unsupported_value", "session.audio.format.rate",
    ),
    (
        {"audio": {"format": {"type": "audio/opus"}}},
        "invalid_request_error", "unsupported_value", "session.audio.format",
    ),
    ({"instructions": "x " * 20_000}, "invalid_request_error", "instructions_too_long", "session.instructions"),
    ({"instructions": "Ana? " * 2000}, "invalid_request_error", "instructions_too_long", "session.instructions"),
    (
        {"delegation": {"type": "responses", "responses": {"model": "m", "tools": TOOLS}}},
        "forbidden", "unsupported_value", "session.delegation.responses.tools",
    ),
    (
        {"delegation": {"type": "responses", "responses": {}}},
        "invalid_request_error", "missing_required_parameter", "session.delegation.responses.model",
    ),
    (
        {"delegation": {"type": "decisions", "decisions": {"model": "m", "questions": []}}},
        "forbidden", "unsupported_value", "session.delegation",
    ),
    ({"triggers": [{"type": "decisions"}]}, "forbidden", "unsupported_value", "session.triggers"),
    ({"store": True}, "forbidden", "unsupported_value", "session.store"),
    ({"client": {"data_channel": {}}}, "forbidden", "unsupported_value", "session.client"),
    (
        {"input": [{"role": "system", "content": [{"text": "x"}]}]},
        "invalid_request_error", "unsupported_value", "session.input.0.role",
    ),
    (
        {"input": [{"role": "user", "content": []}]},
        "invalid_request_error", "invalid_value", "session.input.0.content",
    ),
]  # fmt: skip


async def test_a_configuration_that_cannot_be_used_is_an_error_before_the_close(server: Server) -> None:
    """Never `session.closed` nor code 1000, which make LiveKit connect again without a pause."""
    for session, kind, code, param in REFUSED:
        async with call(server) as caller:
            await caller.send("session.start", event_id="s", session={"model": "gpt-live-1", **session})
            (event,) = await caller.until_closed()
            error = event["error"]
            assert (error["type"], error["code"], error["param"]) == (kind, code, param)
            assert error["client_event_id"] == "s"
            assert caller.code == 1008
    assert server.engine.opened == 0


async def test_a_start_without_a_session_is_refused(server: Server) -> None:
    for session in (None, [], "x"):
        async with call(server) as caller:
            await caller.send("session.start", session=session)
            (event,) = await caller.until_closed()
            assert event["error"]["param"] == "session"
            assert caller.code == 1008


async def test_a_start_beyond_its_size_limit_is_refused(caller: Caller) -> None:
    await caller.send("session.start", session={"model": "x" * MAX_CONFIG_CHARACTERS})
    (event,) = await caller.until_closed()
    assert event["error"]["code"] == "invalid_value"


async def test_a_client_may_start_late(serve: Serve) -> None:
    """Pipecat connects when its pipeline is set up, and starts with the first context."""
    async with serve(handshake_seconds=0.1) as server, call(server) as caller:
        await asyncio.sleep(0.4)
        assert server.runtime.admission.taken == 0
        await caller.start()
        await caller.close()
    assert caller.code == 1000


async def test_a_client_that_never_starts_is_disconnected(serve: Serve) -> None:
    async with serve(openai_start_seconds=0.2) as server, call(server) as caller:
        await caller.send("session.input_audio.mute")
        refused, event = await caller.until_closed()
    assert refused["error"]["code"] == event["error"]["code"] == "session_not_started"
    assert caller.code == 1008


async def test_the_query_is_ignored(server: Server) -> None:
    """LiveKit Inference states the model there too."""
    async with server.connect(f"{PATH}?model=openai/gpt-live-1") as socket:
        await Caller(socket).start()


async def test_permessage_deflate_is_declined(server: Server) -> None:
    async with connect(server.url + PATH, compression="deflate", proxy=None) as socket:
        assert socket.response is not None
        assert "Sec-WebSocket-Extensions" not in socket.response.headers


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"api-key": KEY}, {"X-API-Key": KEY}], ids=["bearer", "azure", "x"]
)
async def test_a_valid_key_is_accepted(serve: Serve, headers: dict[str, str]) -> None:
    async with serve(api_keys=[KEY]) as server, call(server, additional_headers=headers) as caller:
        await caller.start()


async def refusal(server: Server, path: str = PATH, **options: Any) -> tuple[int, dict[str, Any]]:
    """Status and error of an opening handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with server.connect(path, **options):
            pass
    response = caught.value.response
    return response.status_code, json.loads(response.body)["error"]


async def test_the_handshake_is_refused_without_a_key_and_from_foreign_pages(serve: Serve) -> None:
    async with serve(api_keys=[KEY]) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            status, error = await refusal(server, additional_headers=headers)
            assert (status, error["code"], error["type"]) == (401, "invalid_api_key", "invalid_request_error")
        status, error = await refusal(server, origin="https://elsewhere.example")
        assert (status, error["code"]) == (403, "not_allowed")


@pytest.mark.parametrize("path", ["/v1/live/sessions/live_x/attach", "/v1/live/sessions/live_x/fork", "/v1/live/x"])
async def test_other_routes_of_the_api_are_not_found(server: Server, path: str) -> None:
    status, error = await refusal(server, path)
    assert (status, error["code"], error["param"]) == (404, "not_found", None)
