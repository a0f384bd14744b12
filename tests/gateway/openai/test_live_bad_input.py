"""Random and hostile events of the Live API: no failure, no slot lost, and no delay for other sessions."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tuned
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.effort import effort
from tests.gateway.neighbour import FRAME_GAP_MS, LOOP_LAG_MS, MeasuredServer, best_of_three, serve_measured
from tests.gateway.openai.conftest import PATH
from tests.gateway.openai.types import CLIENT_EVENTS, check
from tests.gateway.websocket.test_bad_input import Message, json_like, loop_in_thread

CASES = effort(25, 1000)
LIMIT = 20_000
INTERNAL_ERROR = 1011


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


def start(**session: Any) -> str:
    return event("session.start", session={"model": "gpt-live-1", **session})


def append(data: bytes) -> str:
    return event("session.input_audio.append", audio=base64.b64encode(data).decode())


CLOSE = event("session.close")
FORMATS = [{"type": "audio/pcm", "rate": 16000}, {"type": "audio/pcmu", "rate": 8000}, {"type": "audio/pcma"}]
FIELDS = [
    "model", "instructions", "audio", "delegation", "input", "store", "safety_identifier", "triggers", "client", "x"
]  # fmt: skip

starts = st.one_of(
    st.just(start()),
    st.sampled_from(FORMATS).map(lambda audio_format: start(audio={"format": audio_format})),
    st.dictionaries(st.sampled_from(FIELDS), json_like(), max_size=4).map(lambda fields: start(**fields)),
    st.dictionaries(st.sampled_from(["format", "output", "x"]), json_like()).map(lambda audio: start(audio=audio)),
)
events = st.one_of(
    starts,
    st.sampled_from(CLIENT_EVENTS).map(event),
    st.builds(
        lambda kind, fields: json.dumps({**fields, "type": kind}),
        st.sampled_from(CLIENT_EVENTS),
        st.dictionaries(st.sampled_from(["event_id", "audio", "session", "content", "item"]), json_like()),
    ),
    json_like().map(json.dumps),
    st.text(max_size=50),
    st.binary(max_size=50),
    st.sampled_from(["[" * 5000, '{"type":"session.start","session":{"instructions":"\\ud800"}}', "", "x" * LIMIT]),
)
audio = st.one_of(
    st.binary(max_size=200).map(append),
    st.integers(0, LIMIT // 4).map(lambda size: append(bytes(2 * size))),
    st.text(max_size=20).map(lambda text: event("session.input_audio.append", audio=text)),
    st.sampled_from(["session.input_audio.mute", "session.input_audio.unmute"]).map(event),
)
cases = st.tuples(
    st.one_of(starts, starts, events), st.lists(st.one_of(audio, audio, events), max_size=6), st.booleans()
)


async def session(server: MeasuredServer, messages: list[Message], ends: bool) -> None:
    """Send all messages; then close the session and wait for the end, or drop the connection."""
    received: list[dict[str, Any]] = []
    client = await connect(
        server.websocket_url + PATH, compression=None, proxy=None, close_timeout=1, ping_interval=None, max_size=None
    )
    with suppress(ConnectionClosed):
        for message in [*messages, *([CLOSE] if ends else [])]:
            await client.send(message)
    if ends:
        with suppress(ConnectionClosed):
            async with asyncio.timeout(20):
                while True:
                    received.append(json.loads(await client.recv()))
        assert client.close_code != INTERNAL_ERROR
        for number, answer in enumerate(received):
            check(answer)
            assert answer["type"] != "session.closed" or number == len(received) - 1
        kinds = [answer["type"] for answer in received]
        if client.close_code == 1000 and "session.started" in kinds:
            assert kinds[-1] == "session.closed"
        else:
            assert "session.closed" not in kinds
    client.transport.abort()


async def until_only_the_neighbour_is_left(server: MeasuredServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client, asyncio.timeout(20):
        while "personaplex_conversations_active 1.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.effort
@pytest.mark.timeout(900)
def test_random_events(models: Path) -> None:
    """On one server, beside one neighbour."""
    settings: dict[str, Any] = {"max_message_bytes": LIMIT, "openai_start_seconds": 0.5, "live_speed": 0}
    with loop_in_thread() as run:
        serving = serve_measured(models, **settings)
        server = run(serving.__aenter__())
        neighbour = server.neighbour()
        felt = run(neighbour.__aenter__())

        @tuned(
            max_examples=CASES,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            # No shrinking: it would take hundreds of sessions more.
            phases=tuned.default.phases[:3],
        )
        @given(cases)
        def run_cases(case: tuple[Message, list[Message], bool]) -> None:
            first, then, ends = case
            run(session(server, [first, *then], ends))

        try:
            run_cases()
            run(until_only_the_neighbour_is_left(server))
        finally:
            run(neighbour.__aexit__(None, None, None))
            run(serving.__aexit__(None, None, None))
    print(f"loop lag {felt.loop_lag_ms:.1f} ms, frame gap {felt.frame_gap_ms:.0f} ms")
    assert felt.loop_lag_ms < LOOP_LAG_MS
    assert felt.frames > 5


LARGE = 700_000
ATTACKS: dict[str, list[Message]] = {
    "tiny appends": [start(), *[append(bytes(2))] * 20_000],
    "errors": [start(), *["{}"] * 20_000],
    "errors before the start": ["{}"] * 20_000,
    "acknowledgements": [start(), *[event("session.input_audio.mute")] * 20_000],
    "PCM of 16 kHz, 0.7 MB": [start(audio={"format": FORMATS[0]}), *[append(bytes(LARGE))] * 4],
    "G.711, 0.7 MB": [start(audio={"format": FORMATS[1]}), *[append(bytes(LARGE))] * 4],
    "lists": [start(), *["[" + "[]," * 200_000 + "0]"] * 4],
    "values": [start(), *["[" + "[]," * 9_000 + "0]"] * 40],
    "history": [start(input=[{"role": "user", "content": [{"text": "x"}], "x": [[]] * 1000}] * 100)] * 3,
    "nested": [start(delegation={"type": "responses", "responses": {"model": "m", "x": [[[]] * 80_000]}})] * 3,
}


async def attack(url: str, messages: list[Message]) -> None:
    """Send the messages and read the answers for a second, then drop the connection."""
    client = await connect(url, compression=None, proxy=None, max_size=None)

    async def send() -> None:
        for message in messages:
            await client.send(message)

    sending = asyncio.create_task(send())
    with suppress(ConnectionClosed, TimeoutError):
        async with asyncio.timeout(1):
            while True:
                await client.recv()
    sending.cancel()
    with suppress(ConnectionClosed, asyncio.CancelledError):
        await sending
    client.transport.abort()


SHORT = ("errors",)


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in ATTACKS]
)
@best_of_three
async def test_other_sessions_are_not_delayed(models: Path, name: str) -> None:
    async with serve_measured(models) as server, server.neighbour() as felt:
        for _ in range(2):
            await attack(server.websocket_url + PATH, ATTACKS[name])
        await asyncio.sleep(0.3)
    print(f"{name}: loop lag {felt.loop_lag_ms:.1f} ms, frame gap {felt.frame_gap_ms:.0f} ms")
    assert felt.loop_lag_ms < LOOP_LAG_MS
    assert felt.frame_gap_ms < FRAME_GAP_MS
    assert felt.frames > 5
