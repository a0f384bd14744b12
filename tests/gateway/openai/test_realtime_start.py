"""How Realtime sessions are configured and started, and how connections are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.api.openai.config import MAX_CONFIG_CHARACTERS
from gateway.session.persona import SYSTEM_PROMPTS
from tests.gateway.openai.conftest import REALTIME_PATH, RealtimeCaller, Serve, Server, realtime, refusal
from tests.gateway.websocket.conftest import FRAME

KEY = "s3cret-key"
PCM = {"type": "audio/pcm", "rate": 24000}
LIVEKIT: dict[str, Any] = {
    "model": "gpt-realtime",
    "output_modalities": ["audio"],
    "audio": {
        "input": {
            "format": PCM,
            "transcription": {"model": "gpt-4o-mini-transcribe"},
            "turn_detection": {
                "type": "semantic_vad", "eagerness": "medium", "create_response": True, "interrupt_response": True
            },
        },
        "output": {"format": PCM, "voice": "marin", "speed": 1.0},
    },
    "max_output_tokens": "inf",
    "tool_choice": "auto",
    "tracing": None,
}  # fmt: skip


async def prompts(server: Server) -> int:
    """Wait for the start of a session; return how many have started."""
    async with asyncio.timeout(10):
        while not server.engine.prefills:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return len(server.engine.prefills)


async def test_the_server_speaks_first(server: Server) -> None:
    async with realtime(server) as caller:
        session = (await caller.receive())["session"]
        assert session["id"].startswith("sess_")
        assert session["model"] == "personaplex"
        assert session["instructions"] == SYSTEM_PROMPTS["assistant"]
        assert session["audio"] == {
            "input": {"format": PCM, "noise_reduction": None, "transcription": None, "turn_detection": None},
            "output": {"format": PCM, "voice": "NATF0", "speed": 1.0},
        }
        assert (session["tools"], session["tool_choice"]) == ([], "none")
        assert (await caller.update()) == session
    assert server.engine.opened == 0


async def test_livekits_configuration_is_resolved(server: Server) -> None:
    async with realtime(server) as caller:
        await caller.update(**LIVEKIT)
        session = await caller.update(instructions="You are Ana.")
        assert await caller.update(tools=[{"type": "function", "name": "weather", "parameters": {}}]) == session
    assert session["instructions"] == "You are Ana."
    assert session["audio"]["output"] == {"format": PCM, "voice": "NATF0", "speed": 1.0}
    assert session["audio"]["input"]["transcription"] is None
    # The model decides on responses and interruptions itself.
    assert session["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad", "create_response": False, "interrupt_response": False
    }  # fmt: skip
    assert session["tools"] == []


async def test_updates_are_sparse(server: Server) -> None:
    g711 = {"type": "audio/pcmu"}
    async with realtime(server) as caller:
        await caller.update(instructions="You are Ana.", audio={"output": {"voice": "NATM1", "format": g711}})
        session = await caller.update(audio={"input": {"turn_detection": {"type": "server_vad"}}})
        assert session["instructions"] == "You are Ana."
        assert session["audio"]["output"] == {"format": g711, "voice": "NATM1", "speed": 1.0}
        detection = session["audio"]["input"]["turn_detection"]
        assert detection == {
            "type": "server_vad", "create_response": False, "interrupt_response": False, "prefix_padding_ms": 300,
            "silence_duration_ms": 500,
        }  # fmt: skip
        session = await caller.update(instructions=None, audio={"output": {"voice": {"id": "NATF0"}}})
        assert session["instructions"] == "You are Ana."
        assert session["audio"]["output"]["voice"] == "NATF0"
        assert session["audio"]["input"]["turn_detection"] == detection
        assert (await caller.update(instructions=" \n"))["instructions"] == SYSTEM_PROMPTS["assistant"]


REFUSED: list[tuple[Any, str, str]] = [
    (None, "invalid_value", "session"),
    ([], "invalid_value", "session"),
    # The beta version of the API.
    ({"modalities": ["audio"], "voice": "alloy"}, "missing_required_parameter", "session.type"),
    ({"type": "transcription"}, "unsupported_value", "session.type"),
    ({"type": "realtime", "instructions": 7}, "invalid_value", "session.instructions"),
    ({"type": "realtime", "instructions": "x " * 20_000}, "instructions_too_long", "session.instructions"),
    # More tokens than the model's context.
    ({"type": "realtime", "instructions": "Ana? " * 2000}, "instructions_too_long", "session.instructions"),
    (
        {"type": "realtime", "audio": {"output": {"voice": "nobody"}}},
        "invalid_value", "session.audio.output.voice",
    ),
    (
        {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
        "unsupported_value", "session.audio.input.format.rate",
    ),
    (
        {"type": "realtime", "audio": {"output": {"format": {"type": "audio/opus"}}}},
        "unsupported_value", "session.audio.output.format",
    ),
    (
        {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "none"}}}},
        "unsupported_value", "session.audio.input.turn_detection.type",
    ),
]  # fmt: skip


async def test_an_update_that_cannot_be_used_is_an_error_and_changes_nothing(server: Server) -> None:
    async with realtime(server) as caller:
        before = (await caller.receive())["session"]
        for session, code, param in REFUSED:
            await caller.send("session.update", event_id="u", session=session)
            error = await caller.error()
            assert (error["code"], error["param"], error["event_id"]) == (code, param, "u")
        await caller.send("session.update", session={"type": "realtime", "instructions": "x" * MAX_CONFIG_CHARACTERS})
        assert (await caller.error())["code"] == "invalid_value"
        assert await caller.update() == before


async def test_the_first_audio_starts_the_session_with_the_configuration_that_follows_at_once(server: Server) -> None:
    """Pipecat sends its instructions with the first audio, LiveKit sends three updates."""
    async with realtime(server) as caller:
        await caller.append(bytes(2 * FRAME))
        for text in ("Two.", "You are Ana, a teacher."):
            await asyncio.sleep(0.1)
            session = await caller.update(instructions=text)
        assert await prompts(server) == 1
        assert session["instructions"] == "You are Ana, a teacher."
        session = await caller.update(instructions="Too late.")
        assert session["instructions"] == "You are Ana, a teacher."
    encode = server.runtime.tokenizer.encode_prompt
    longer = len(encode("You are Ana, a teacher.")) - len(encode("Two."))
    async with realtime(server) as caller:
        await caller.update(instructions="Two.")
        await caller.append(bytes(2 * FRAME))
        while len(server.engine.prefills) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    first, second = server.engine.prefills
    assert first.length - second.length == longer > 0


async def test_a_client_may_start_late_and_holds_no_slot_before(serve: Serve) -> None:
    """But for the time of a handshake."""
    async with serve(handshake_seconds=0.2) as server, realtime(server) as caller:
        await caller.update()
        assert server.runtime.admission.taken == 1
        await asyncio.sleep(0.5)
        assert server.runtime.admission.taken == 0
        await caller.append(bytes(2 * FRAME))
        assert await prompts(server) == 1


async def test_a_client_that_never_starts_is_disconnected(serve: Serve) -> None:
    async with serve(openai_start_seconds=0.2) as server, realtime(server) as caller:
        _, event = await caller.until_closed()
    assert (event["error"]["code"], caller.code) == ("session_not_started", 1008)


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("?model=gpt-4o", {}, "model_not_found"),
        ("?intent=transcription", {}, "unsupported_value"),
        ("?call_id=rtc_1", {}, "unsupported_value"),
        ("?model=gpt-realtime", {"OpenAI-Beta": "realtime=v1"}, "beta_not_supported"),
    ],
)
async def test_connections_that_cannot_be_served_are_refused(
    server: Server, query: str, headers: dict[str, str], code: str
) -> None:
    """Before the connection is accepted: LiveKit would connect again at once."""
    assert await refusal(server, REALTIME_PATH + query, additional_headers=headers) == (400, code)


@pytest.mark.parametrize("query", ["", "?model=personaplex", "?model=gpt-realtime-2.1", "?intent=realtime"])
async def test_openais_names_of_the_model_are_accepted(server: Server, query: str) -> None:
    async with realtime(server, REALTIME_PATH + query) as caller:
        assert (await caller.receive())["session"]["model"] == "personaplex"


async def test_a_page_offers_its_key_as_a_subprotocol(serve: Serve) -> None:
    async with serve(api_keys=[KEY]) as server:
        offered = ["realtime", f"openai-insecure-api-key.{KEY}", "openai-agents-sdk.0.20.0"]
        async with server.connect(REALTIME_PATH, subprotocols=offered) as socket:
            assert socket.subprotocol == "realtime"
            await RealtimeCaller(socket).until("session.created")
        for options in ({}, {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"]}):
            assert await refusal(server, **options) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/v1/realtime/calls", "/v1/realtime/client_secrets"])
async def test_other_routes_of_the_api_are_not_found(server: Server, path: str) -> None:
    assert await refusal(server, path) == (404, "not_found")
