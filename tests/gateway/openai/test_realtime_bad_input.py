"""Random and hostile events of the Realtime API: no failure, no slot lost, and no delay for other sessions."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from gateway.api.openai.realtime import SETTLE_S
from tests.effort import effort
from tests.gateway.neighbour import MeasuredServer, best_of_three
from tests.gateway.openai.conftest import REALTIME_PATH
from tests.gateway.openai.hostile import (
    INTERNAL_ERROR,
    LIMIT,
    base64_of,
    event,
    measure_attack,
    open_connection,
    run_random_cases,
)
from tests.gateway.openai.types import Order, check_realtime, realtime_client_events
from tests.gateway.websocket.test_bad_input import Message, json_like

CASES = effort(25, 1000)
PCMU = {"type": "audio/pcmu"}
DETECTION = {"type": "server_vad", "silence_duration_ms": 200}
LAST = event("conversation.item.delete", item_id="the last")


def update(**session: Any) -> str:
    return event("session.update", session={"type": "realtime", **session})


def append(data: bytes) -> str:
    return event("input_audio_buffer.append", audio=base64_of(data))


def create(**item: Any) -> str:
    return event("conversation.item.create", item=item)


MESSAGE: dict[str, Any] = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}
FIELDS = ["model", "instructions", "audio", "tools", "output_modalities", "tracing", "type", "x"]
PARTS = ["item", "item_id", "audio", "session", "response", "response_id", "event_id", "previous_item_id"]

updates = st.one_of(
    st.just(update()),
    st.just(update(audio={"input": {"format": PCMU, "turn_detection": DETECTION}, "output": {"format": PCMU}})),
    st.just(update(audio={"input": {"turn_detection": None}})),
    st.dictionaries(st.sampled_from(FIELDS), json_like(), max_size=4).map(lambda fields: update(**fields)),
    st.dictionaries(st.sampled_from(["input", "output", "x"]), json_like()).map(lambda audio: update(audio=audio)),
)
audio = st.one_of(
    st.binary(max_size=200).map(append),
    st.integers(0, LIMIT // 4).map(lambda size: append(bytes(2 * size))),
    st.integers(0, LIMIT // 4).map(lambda size: append(b"\0\x40" * size)),
    st.text(max_size=20).map(lambda text: event("input_audio_buffer.append", audio=text)),
)
kinds = st.deferred(lambda: st.sampled_from(realtime_client_events()))
events = st.one_of(
    updates,
    kinds.map(event),
    st.sampled_from([create(**MESSAGE), event("response.create"), event("response.cancel")]),
    st.builds(
        lambda kind, fields: json.dumps({**fields, "type": kind}),
        kinds,
        st.dictionaries(st.sampled_from(PARTS), json_like(), max_size=4),
    ),
    json_like().map(json.dumps),
    st.text(max_size=50),
    st.binary(max_size=50),
    st.sampled_from(["[" * 5000, '{"type":"session.update","session":{"instructions":"\\ud800"}}', "", "x" * LIMIT]),
)
cases = st.tuples(
    st.lists(st.one_of(updates, audio, events), max_size=4),
    st.lists(st.one_of(audio, events), max_size=6),
    st.sampled_from(["closes", "closes", "drops"]),
)


async def session(server: MeasuredServer, case: tuple[list[Message], list[Message], str]) -> None:
    """Start a session, send all messages; then wait for the last answer and close the session, or drop it."""
    first, then, end = case
    received: list[dict[str, Any]] = []
    client = await open_connection(server.websocket_url + REALTIME_PATH)
    with suppress(ConnectionClosed):
        for message in [*first, append(bytes(3840))]:
            await client.send(message)
        await asyncio.sleep(SETTLE_S)
        for message in [*then, LAST]:
            await client.send(message)
        if end == "closes":
            async with asyncio.timeout(20):
                while not received or received[-1].get("item_id") != "the last":
                    received.append(json.loads(await client.recv()))
            await client.close()
    if end == "closes":
        assert client.close_code != INTERNAL_ERROR
        order = Order()
        for answer in received:
            check_realtime(answer)
            order.add(answer)
    client.transport.abort()


@pytest.mark.effort
@pytest.mark.alone
@pytest.mark.timeout(1500)
def test_random_events(models: Path) -> None:
    run_random_cases(models, CASES, session, cases)


LARGE = 700_000
G711 = update(audio={"input": {"format": PCMU, "turn_detection": DETECTION}})
START = append(bytes(3840))
ATTACKS: dict[str, list[Message]] = {
    "tiny appends": [START, *[append(bytes(2))] * 20_000],
    "errors": [START, *["{}"] * 20_000],
    "acknowledgements": [START, *[event("input_audio_buffer.clear")] * 20_000],
    "commits": [START, *[event("input_audio_buffer.commit")] * 20_000],
    "updates": [START, *[update(instructions="x " * 9_000)] * 2_000],
    "updates before the start": [update(instructions="Ana? " * 70)] * 5_000,
    "cancels": [START, *[event("response.cancel")] * 20_000],
    "small items": [START, *[create(**MESSAGE)] * 20_000],
    "large items": [START, *[create(**{**MESSAGE, "content": [{"type": "input_text", "text": "x" * LARGE}]})] * 10],
    "clears and appends": [START, *[event("input_audio_buffer.clear"), append(bytes(960))] * 10_000],
    "G.711, 0.7 MB": [G711, *[append(bytes(LARGE))] * 4],
    "loud PCM, 0.7 MB": [update(audio={"input": {"turn_detection": DETECTION}}), *[append(b"\0\x40" * 350_000)] * 4],
    "metadata": [
        START,
        *[event("response.create", response={"metadata": dict.fromkeys(map(str, range(9_000)), 0)})] * 9,
    ],
    "values": [START, *["[" + "[]," * 9_000 + "0]"] * 40],
}
SHORT = ("commits",)


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in ATTACKS]
)
@best_of_three
async def test_other_sessions_are_not_delayed(models: Path, name: str) -> None:
    await measure_attack(models, REALTIME_PATH, name, ATTACKS[name])
