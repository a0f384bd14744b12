"""Random and hostile events of the Live API: no failure, no slot lost, and no delay for other sessions."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from tests.effort import effort
from tests.gateway.neighbour import MeasuredServer, best_of_three
from tests.gateway.openai.conftest import PATH
from tests.gateway.openai.hostile import (
    INTERNAL_ERROR,
    LIMIT,
    base64_of,
    event,
    measure_attack,
    open_connection,
    run_random_cases,
)
from tests.gateway.openai.types import check, client_events
from tests.gateway.websocket.test_bad_input import Message, json_like

CASES = effort(25, 1000)


def start(**session: Any) -> str:
    return event("session.start", session={"model": "gpt-live-1", **session})


def append(data: bytes) -> str:
    return event("session.input_audio.append", audio=base64_of(data))


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
kinds = st.deferred(lambda: st.sampled_from(client_events()))
events = st.one_of(
    starts,
    kinds.map(event),
    st.builds(
        lambda kind, fields: json.dumps({**fields, "type": kind}),
        kinds,
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


async def session(server: MeasuredServer, case: tuple[Message, list[Message], bool]) -> None:
    """Send all messages; then close the session and wait for the end, or drop the connection."""
    first, then, ends = case
    received: list[dict[str, Any]] = []
    client = await open_connection(server.websocket_url + PATH)
    with suppress(ConnectionClosed):
        for message in [first, *then, *([CLOSE] if ends else [])]:
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


@pytest.mark.effort
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_random_events(models: Path) -> None:
    run_random_cases(models, CASES, session, cases)


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


SHORT = ("errors",)


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in ATTACKS]
)
@best_of_three
async def test_other_sessions_are_not_delayed(models: Path, name: str) -> None:
    await measure_attack(models, PATH, name, ATTACKS[name])
