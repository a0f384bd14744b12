"""Every client event of the Live API and its answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.gateway.openai.conftest import DELTA, TEXT, Caller, Serve, Server, call, encoded
from tests.gateway.openai.types import check_client, client_events
from tests.gateway.websocket.conftest import FRAME

MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "session.update": {"session": {"delegation": {"type": "client"}}},
    "session.instructions.append": {"content": "Be brief.", "delegation_id": None},
    "session.thinking.append": {"content": "It rains.", "delegation_id": None},
    "session.commentary.append": {"content": "Say hello.", "delegation_id": None},
    "session.output_audio.fixture.play": {"audio": ""},
    "response.item.create": {"item": MESSAGE},
    "response.create": {},
    "decision.create": {},
    "decision.item.create": {"item": MESSAGE},
    "decision.item.delete": {"item_id": "item-1"},
    "transport.dtmf.send": {"event": "5"},
}
SUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "session.start": ({"session": {"model": "gpt-live-1"}}, "session.started"),
    "session.input_audio.append": ({"audio": encoded(bytes(2 * FRAME))}, DELTA),
    "session.input_audio.mute": ({}, "session.input_audio.muted"),
    "session.input_audio.unmute": ({}, "session.input_audio.unmuted"),
    "session.close": ({}, "session.closed"),
}
"""Fields and answer, in an order in which a client may send them."""


async def test_every_client_event_has_its_answer(caller: Caller) -> None:
    """One that a later version of openai-python adds is in neither table."""
    assert sorted([*UNSUPPORTED, *SUPPORTED]) == client_events()
    for kind, (fields, answer) in SUPPORTED.items():
        event = {"type": kind, "event_id": f"my {kind}", **fields}
        check_client(event)
        await caller.socket.send(json.dumps(event))
        received = await caller.until(answer)
        assert received.get("client_event_id") == (None if answer == DELTA else f"my {kind}")
    assert not caller.of("error")


async def test_a_session_from_start_to_close(caller: Caller, noise: Callable[..., Any]) -> None:
    began = time.time()
    session = await caller.start()
    assert session["id"].startswith("live_")
    assert began + 3599 < session["expires_at"] < began + 3700
    assert session["status"] == "active"
    await caller.append(noise(5))
    events = await caller.close()
    closed = events[-1]
    assert closed["type"] == "session.closed"
    assert (closed["reason"], closed["client_event_id"]) == ("close_requested", "close-1")
    assert closed["session"] == session
    assert closed["usage"] == {"seconds": 1}
    assert caller.code == 1000
    # Frame 0 answers no user frame.
    assert [len(event["delta"]) for event in caller.of(DELTA)] == [5120] * 6
    assert not caller.of("error")
    ids = [event["event_id"] for event in caller.events if event["type"] != DELTA]
    assert len(set(ids)) == len(ids)


async def test_the_transcript_has_the_times_of_its_frames(caller: Caller, noise: Callable[..., Any]) -> None:
    await caller.start()
    await caller.append(noise(30))
    await caller.close()
    frame = 0
    for event, following in zip(caller.events, caller.events[1:], strict=False):
        if event["type"] == TEXT:
            assert (event["start_ms"], event["end_ms"]) == (80 * frame, 80 * frame + 80)
            assert event["delta"]
            assert following["type"] == DELTA
        frame += event["type"] == DELTA
    assert frame == 31
    assert len(caller.of(TEXT)) > 10


async def test_audio_and_text_equal_the_answer_to_the_recording(
    server: Server, caller: Caller, noise: Callable[..., Any]
) -> None:
    pcm = (noise(12.3) * 32767).astype("<i2")
    # The API has no seed. A greedy engine has none either.
    server.runtime.manifest.sampling.text_temperature = server.runtime.manifest.sampling.audio_temperature = 0.0
    await caller.start(instructions="You are Ana.", audio={"output": {"voice": "NATM1"}})
    # LiveKit's pieces of 100 ms, and pieces that are no whole frames.
    for at in range(0, len(pcm), 2400):
        await caller.append(pcm[at : at + 2400].tobytes())
    await caller.close()
    expected = await server.offline(pcm / np.float32(32768), 14, text_prompt="You are Ana.", voice="NATM1", greedy=True)
    assert caller.transcript.strip() == expected["transcript"] != ""
    # Frame 0 is the forced silence, whose audio the squelch replaces unless it is loud.
    assert np.array_equal(caller.frames.reshape(-1)[FRAME:], expected["audio"][FRAME:])


async def test_events_that_cannot_be_done_are_refused_and_the_call_goes_on(
    caller: Caller, noise: Callable[..., Any]
) -> None:
    await caller.start()
    for kind, fields in UNSUPPORTED.items():
        check_client({"type": kind, "event_id": f"my {kind}", **fields})
        await caller.send(kind, event_id=f"my {kind}", **fields)
        error = (await caller.until("error"))["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported_event")
        assert error["client_event_id"] == f"my {kind}"
        assert error["message"].startswith(f"{kind}: ")
        await caller.append(noise(1))
    events = await caller.close()
    assert len(caller.of(DELTA)) == len(UNSUPPORTED) + 1
    assert events[-1]["reason"] == "close_requested"


async def test_mute_replaces_the_audio_by_silence_and_the_clock_runs_on(
    server: Server, caller: Caller, noise: Callable[..., Any]
) -> None:
    server.runtime.manifest.sampling.text_temperature = server.runtime.manifest.sampling.audio_temperature = 0.0
    pcm = noise(9)
    await caller.start()
    await caller.append(pcm[: 3 * FRAME])
    for number, kind in enumerate(("mute", "unmute")):
        await caller.send(f"session.input_audio.{kind}", event_id=f"id-{kind}")
        answer = await caller.until(f"session.input_audio.{kind}d")
        assert answer["client_event_id"] == f"id-{kind}"
        await caller.append(pcm[(3 + 3 * number) * FRAME :][: 3 * FRAME])
    await caller.close()
    heard = np.concatenate([pcm[: 3 * FRAME], np.zeros(3 * FRAME, np.float32), pcm[6 * FRAME :]])
    heard = (heard * 32767).astype("<i2") / np.float32(32768)
    expected = await server.offline(heard, 10, greedy=True)
    assert len(caller.frames) == 10
    assert np.array_equal(caller.frames.reshape(-1)[FRAME:], expected["audio"][FRAME:])


UNUSABLE = [
    ("not JSON", "invalid_json", None, None),
    ("[" * 5000, "invalid_json", None, None),
    ("[]", "invalid_json", None, None),
    (b"\0\0", "invalid_json", None, None),
    ('{"event_id": "x"}', "unknown_event", "type", "x"),
    ('{"type": 5, "event_id": "x"}', "unknown_event", "type", "x"),
    ('{"type": "session.stop", "event_id": "x"}', "unknown_event", "type", "x"),
    ('{"type": "session.close", "event_id": 7}', "invalid_value", "event_id", None),
    ('{"type": "session.input_audio.append", "event_id": "x"}', "invalid_value", "audio", "x"),
    ('{"type": "session.input_audio.append", "audio": "%%%", "event_id": "x"}', "invalid_value", "audio", "x"),
    ('{"type": "session.input_audio.append", "audio": "AAA", "event_id": "x"}', "invalid_value", "audio", "x"),
    ('{"type": "session.input_audio.append", "audio": "AAAA", "event_id": "x"}', "invalid_value", "audio", "x"),
    ('{"type": "session.start", "session": {}, "event_id": "x"}', "session_already_started", None, "x"),
]


async def test_messages_that_cannot_be_used_are_errors_and_the_call_goes_on(
    caller: Caller, noise: Callable[..., Any]
) -> None:
    await caller.start()
    for message, code, param, client_event_id in UNUSABLE:
        await caller.socket.send(message)
        error = (await caller.until("error"))["error"]
        assert (error["code"], error.get("param"), error.get("client_event_id")) == (code, param, client_event_id)
        await caller.append(noise(1))
    await caller.close()
    assert len(caller.of(DELTA)) == len(UNUSABLE) + 1


async def test_before_the_start_all_but_audio_is_refused(caller: Caller) -> None:
    for kind in {*UNSUPPORTED, *SUPPORTED} - {"session.start", "session.close", "session.input_audio.append"}:
        await caller.send(kind, event_id="early", **UNSUPPORTED.get(kind, {}))
        error = (await caller.receive())["error"]
        assert (error["code"], error["client_event_id"]) == ("session_not_started", "early")
    # openai-python goes on sending audio after a reconnection.
    await caller.append(bytes(2 * FRAME))
    await caller.socket.send("no JSON")
    assert (await caller.receive())["error"]["code"] == "invalid_json"
    await caller.start()
    await caller.close()
    assert len(caller.of(DELTA)) == 1


async def test_a_close_before_the_start_closes_the_socket(caller: Caller) -> None:
    assert await caller.close() == []
    assert caller.code == 1000


async def test_events_after_the_close_change_nothing(caller: Caller, noise: Callable[..., Any]) -> None:
    await caller.start()
    await caller.append(noise(30))
    await caller.send("session.close", event_id="close-0")
    await caller.append(noise(5))
    events = await caller.close()
    assert events[-1]["client_event_id"] == "close-0"
    assert len(caller.of(DELTA)) == 31


async def test_usage_is_reported_every_15_seconds_of_audio(
    server: Server, caller: Caller, noise: Callable[..., Any]
) -> None:
    await caller.start()
    for _ in range(4):
        await caller.append(noise(100))
    await caller.close()
    (prompt,) = server.engine.prefills
    updates = caller.of("session.usage.updated")
    assert [update["usage"]["seconds"] for update in updates] == [16, 30, 33]
    assert [update["context_window"]["usage_ratio"] for update in updates] == [
        pytest.approx(min(1, (prompt.length + frames) / 300), abs=1e-5) for frames in (188, 375, 401)
    ]
    assert caller.events[-1]["usage"] == {"seconds": 33}


@pytest.mark.parametrize(
    ("audio_format", "sample_bytes"),
    [
        ({"type": "audio/pcm", "rate": 24000}, 2),
        ({"type": "audio/pcm", "rate": 16000}, 2),
        ({"type": "audio/pcmu", "rate": 8000}, 1),
        ({"type": "audio/pcma", "rate": 8000}, 1),
    ],
)
async def test_both_directions_have_the_format_of_the_session(
    caller: Caller, audio_format: dict[str, Any], sample_bytes: int
) -> None:
    session = await caller.start(audio={"format": audio_format})
    assert session["audio"]["format"] == audio_format
    second = audio_format["rate"] * sample_bytes
    idle = {"audio/pcmu": b"\xff", "audio/pcma": b"\xd5"}.get(audio_format["type"], b"\0")
    for _ in range(10):
        await caller.append(idle * (second // 5))
    await caller.close()
    # 2 s of audio, and frame 0.
    assert len(caller.audio) == second * 26 * 80 // 1000
    assert len(set(caller.audio)) > 2


async def test_audio_of_any_length_is_accepted(caller: Caller, noise: Callable[..., Any]) -> None:
    await caller.start()
    for size in (0, 2, 4, 30_002, 200_000):
        await caller.append(bytes(size))
    await caller.close()
    assert len(caller.of(DELTA)) == -(-230_008 // (2 * FRAME)) + 1


async def test_long_messages_of_g711_are_decoded_in_pieces(server: Server) -> None:
    async with call(server) as caller:
        await caller.start(audio={"format": {"type": "audio/pcmu", "rate": 8000}})
        data = np.random.default_rng(1).integers(0, 256, 100_000).astype(np.uint8).tobytes()
        await caller.append(data)
        await caller.close()
    assert len(caller.audio) == pytest.approx(100_000, abs=1280)


class TestForcedSpeech:
    TEXT = "Hello this is Ana speaking."

    async def test_the_agent_says_a_commentary_verbatim(self, serve: Serve, noise: Callable[..., Any]) -> None:
        async with serve(forced_speech=True) as server, call(server) as caller:
            server.engine.mute = True
            await caller.start()
            await caller.append(noise(2))
            for _ in range(3):
                await caller.until(DELTA)
            await caller.send("session.commentary.append", event_id="say-1", content=self.TEXT, delegation_id=None)
            appended = await caller.until("session.commentary.appended")
            assert (appended["client_event_id"], appended["start_ms"]) == ("say-1", 240)
            await caller.append(noise(150))
            await caller.close()
        assert caller.transcript.strip() == self.TEXT
        first = caller.of(TEXT)[0]
        assert first["start_ms"] > appended["start_ms"]

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({}, "content"),
            ({"content": 5}, "content"),
            ({"content": " "}, "content"),
            ({"content": "a " * 501}, "content"),
            ({"content": "a" * 4001}, "content"),
            ({"content": "Hello.", "delegation_id": "d"}, "delegation_id"),
        ],
    )
    async def test_what_cannot_be_said_is_refused(self, serve: Serve, fields: dict[str, Any], param: str) -> None:
        async with serve(forced_speech=True) as server, call(server) as caller:
            await caller.start()
            await caller.send("session.commentary.append", event_id="say-1", **fields)
            error = (await caller.until("error"))["error"]
            assert (error["code"], error["param"], error["client_event_id"]) == ("invalid_value", param, "say-1")
            await caller.close()
            assert caller.code == 1000
