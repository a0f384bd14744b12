"""Random and hostile messages of every service: no failure, no slot lost, and no delay for other sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.effort import effort
from tests.gateway.neighbour import MeasuredServer, best_of_three
from tests.gateway.openai.hostile import INTERNAL_ERROR, LIMIT, measure_attack, open_connection, run_random_cases
from tests.gateway.telephony.phones import PHONES, Asterisk, Message, Phone, Plivo, Telnyx, Twilio, Vonage
from tests.gateway.websocket.test_bad_input import json_like

CASES = effort(5, 1000)
"""Of each service."""

NAMES = ["voice", "text_prompt", "system_prompt", "seed", "greedy", "audio_temperature", "api_key", "x"]
EVENTS = [
    "connected", "start", "media", "dtmf", "mark", "stop", "error", "playedStream", "clearedAudio",
    "websocket:connected", "websocket:dtmf", "websocket:notify", "MEDIA_START", "MEDIA_XOFF", "DTMF_END",
]  # fmt: skip
FIELDS = ["start", "media", "dtmf", "mark", "name", "payload", "content-type", "format", "extra_headers", "digit"]


Sent = Callable[[Phone], Message]
"""Makes a message of a phone."""


def as_it_is(message: Message) -> Sent:
    return lambda phone: message


@cache
def messages(kind: type[Phone]) -> st.SearchStrategy[Sent]:
    """Right and wrong messages of a service."""
    phone = kind()
    return st.one_of(
        st.binary(max_size=300).map(lambda data: lambda phone: phone.media(data)),
        st.integers(0, LIMIT // 4).map(lambda size: lambda phone: phone.media(bytes(2 * size))),
        st.sampled_from([*phone.others(), phone.dtmf("5"), phone.played("0"), *phone.hello()]).map(as_it_is),
        st.text(max_size=5).map(lambda digits: lambda phone: phone.dtmf(digits)),
        st.builds(
            lambda event, fields: as_it_is(json.dumps({**fields, "event": event})),
            st.sampled_from(EVENTS),
            st.dictionaries(st.sampled_from(FIELDS), json_like(), max_size=4),
        ),
        # A right start, changed in one place.
        st.builds(
            lambda name, value: lambda phone: changed_start(phone, name, value),
            st.sampled_from(
                ["streamSid", "callSid", "mediaFormat", "media_format", "content-type", "format", "streamId"]
            ),
            json_like(),
        ),
        json_like().map(json.dumps).map(as_it_is),
        st.text(max_size=50).map(as_it_is),
        st.binary(max_size=50).map(as_it_is),
        st.sampled_from(
            ["[" * 5000, '{"event":"\\ud800"}', "", "MEDIA_START", "DTMF_END digit", "x" * LIMIT, " " * 99]
        ).map(as_it_is),
    )


def json_start(phone: Phone) -> str:
    start = (Asterisk() if isinstance(phone, Asterisk) else phone).hello()[-1]
    assert isinstance(start, str)
    return start


def changed_start(phone: Phone, name: str, value: object) -> str:
    start = json.loads(json_start(phone))
    start.get("start", start)[name] = value
    if name in {"streamSid", "streamId"}:
        phone.streams.append(value)
    return json.dumps(start)


@st.composite
def cases(draw: Callable[..., Any], kind: type[Phone]) -> tuple[Phone, list[Message], bool]:
    """A phone, what it sends, and whether it ends the call itself."""
    phone = kind()
    parameters: dict[str, str] = draw(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=10), max_size=2))
    if isinstance(phone, Asterisk):
        parameters = {}
    hello = draw(st.sampled_from([phone.hello(), phone.hello(), phone.hello(**parameters), []]))
    then = [make(phone) for make in draw(st.lists(messages(kind), max_size=8))]
    return phone, [*hello, *then], draw(st.booleans())


def offered(phone: Phone) -> list[Subprotocol] | None:
    return [Subprotocol(name) for name in phone.subprotocols or []] or None


async def session(server: MeasuredServer, case: tuple[Phone, list[Message], bool]) -> None:
    """Send all messages; then end the call and wait for the end, or drop the connection."""
    phone, sent, ends = case
    client = await open_connection(server.websocket_url + phone.path, subprotocols=offered(phone))
    with suppress(ConnectionClosed):
        for message in sent:
            await client.send(message)
        if ends and (stop := phone.stop()) is not None:
            await client.send(stop)
    if ends and phone.stop() is not None:
        with suppress(ConnectionClosed):
            async with asyncio.timeout(20):
                while True:
                    phone.read(await client.recv())
        assert client.close_code in {1000, 1001, 1007, 1008, 1009, 1013}
    client.transport.abort()
    assert client.close_code != INTERNAL_ERROR


@pytest.mark.effort
@pytest.mark.alone
@pytest.mark.timeout(1800)
def test_random_messages(models: Path) -> None:
    run_random_cases(models, CASES, session, *map(cases, PHONES))


def large(phone: Phone) -> Message:
    """The largest audio message."""
    return phone.media(bytes(65_000 if isinstance(phone, Vonage | Asterisk) else 48_000))


def call_of(phone: Phone, *then: Message) -> tuple[Phone, list[Message]]:
    return phone, [*phone.hello(), *then]


def backwards(phone: Phone, count: int) -> list[Message]:
    return [phone.media(b"\xff") for _ in range(count)][::-1]


ATTACKS = {
    "tiny media": call_of(Twilio(), *[Twilio().media(b"\xff")] * 20_000),
    "large media": call_of(Twilio(), *[large(Twilio())] * 60),
    "large L16 at 16 kHz": call_of(Plivo("pcm_s16le", 16_000), *[large(Plivo())] * 60),
    "tiny binary media": call_of(Vonage(), *[b"\0\0"] * 20_000),
    "large binary media at 8 kHz": call_of(Vonage("pcm_s16le", 8_000), *[large(Vonage())] * 60),
    "keys and marks": call_of(Twilio(), *[Twilio().dtmf("5"), Twilio().played("0")] * 10_000),
    "unknown events": (Twilio(), ['{"event":"x"}'] * 20_000),
    "lists": call_of(Twilio(), *['{"x":[' + "[]," * 21_000 + "0]}"] * 60),
    "chunks backwards": call_of(Telnyx(), *backwards(Telnyx(), 20_000)),
    "plain text": (Asterisk(), ["STATUS " + "a:1 " * 16_000] * 40),
}


SHORT = ("tiny media",)


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in ATTACKS]
)
@best_of_three
async def test_other_sessions_are_not_delayed(models: Path, name: str) -> None:
    phone, sent = ATTACKS[name]
    await measure_attack(models, phone.path, name, sent, subprotocols=offered(phone))
