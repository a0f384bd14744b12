"""The published schemas: complete, and what is sent and received in real sessions is valid by them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from gateway.api.openai import live_events, realtime_events
from tests.gateway.schemas import CHANNELS, types, validator
from tests.gateway.telephony.phones import PHONES, Phone, PlainAsterisk
from tests.gateway.websocket.conftest import END, FRAME, Server, receive_all, serve, server, start

__all__ = ["serve", "server"]

PROTO = Path(__file__).parents[2] / "gateway/api/grpc/personaplex/v1/personaplex.proto"
AUDIO = "AAAA" * 20
CLIENT_EVENTS: dict[str, list[dict[str, Any]]] = {
    "live": [
        {"type": "session.start", "event_id": "1", "session": {"model": "personaplex"}},
        {"type": "session.start", "session": {"model": "gpt-live-1", "audio": {"output": {"voice": "marin"}}}},
        {"type": "session.start", "session": {"model": "m", "audio": {"format": {"type": "audio/pcmu", "rate": 8000}}}},
        {"type": "session.input_audio.append", "audio": AUDIO},
        {"type": "session.input_audio.mute"},
        {"type": "session.commentary.append", "content": "Say hello.", "delegation_id": None},
        {"type": "session.close", "event_id": None},
    ],
    "realtime": [
        {"type": "session.update", "session": {"type": "realtime", "instructions": "You are Ana.", "tools": []}},
        {"type": "input_audio_buffer.append", "audio": AUDIO},
        {"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "c", "output": "1"}},
        {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": 80},
        {"type": "response.create"},
        {"type": "response.create", "response": {"metadata": {"a": "b"}}},
        {"type": "response.cancel", "response_id": "r"},
    ],
    "converse": [
        {"type": "start"},
        {"type": "start", "voice": "NATF0", "seed": 3, "audio": {"format": "pcm_f32le", "sample_rate": 16000}},
        {"type": "end"},
    ],
}
NO_CLIENT_EVENTS: dict[str, list[dict[str, Any]]] = {
    "live": [
        {"type": "session.start", "session": {}},
        {"type": "session.start", "session": {"model": "personaplex", "unknown": 1}},
        {"type": "session.start", "session": {"model": "m", "audio": {"format": {"type": "audio/pcm", "rate": 44100}}}},
        {"type": "session.input_audio.append"},
        {"type": "session.input_audio.mute", "event_id": "x" * 513},
        {"type": "unknown"},
        {},
    ],
    "realtime": [
        {"type": "session.update", "session": {"instructions": "no type"}},
        {"type": "conversation.item.truncate", "item_id": "i"},
        {"type": "conversation.item.create", "item": {"type": "unknown"}},
        {"type": "session.start"},
    ],
    "converse": [{"type": "start", "unknown": 1}, {"type": "start", "audio": {"sample_rate": 1}}, {"voice": "NATF0"}],
}


def test_all_types_are_published() -> None:
    assert types("live", "receive") == live_events.CLIENT_EVENTS
    assert types("realtime", "receive") == realtime_events.CLIENT_EVENTS
    for name, module in (("live", live_events), ("realtime", realtime_events)):
        models = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, BaseModel)]
        defaults = {one.model_fields["type"].default for one in models if "type" in one.model_fields}
        assert types(name, "send") == {kind for kind in defaults if isinstance(kind, str)}


@pytest.mark.parametrize("name", CLIENT_EVENTS)
def test_client_events_are_valid_exactly_if_the_server_takes_them(name: str) -> None:
    found = validator(name, "receive")
    for event in CLIENT_EVENTS[name]:
        found.validate(event)
    for event in NO_CLIENT_EVENTS[name]:
        assert not found.is_valid(event), event


async def test_the_documents_are_served(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url.replace("ws", "http", 1)) as client:
        published = (await client.get("/asyncapi.json")).json()
        proto = await client.get("/personaplex.proto")
    assert proto.text == PROTO.read_text()
    assert {channel["address"] for channel in published["channels"].values()} == {one.path for one in CHANNELS}
    for channel in CHANNELS:
        async with server.connect(channel.path):
            pass
        await server.until_free()
    for reference in references(published):
        node = published
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


async def test_the_messages_of_a_conversation_are_valid(server: Server) -> None:
    async with server.connect() as client:
        for message in (start(seed=1), END):
            validator("converse", "receive").validate(json.loads(message))
        await client.send(start(seed=1))
        await client.send(bytes(2 * FRAME * 14))
        await client.send(END)
        received = await receive_all(client)
    assert {"ready", "text", "stats", "ended"} <= set(received.order)
    async with server.connect() as client:
        await client.send(start(voice="NOBODY"))
        received.messages += (await receive_all(client)).of("error")
    for message in received.messages:
        validator("converse", "send").validate(message)


@pytest.mark.parametrize("name", ["live", "realtime"])
def test_an_event_without_its_type_is_not_valid(name: str) -> None:
    assert not validator(name, "send").is_valid({"event_id": "e", "item": {}, "session": {}})


@pytest.mark.parametrize("kind", [kind for kind in PHONES if kind is not PlainAsterisk])
def test_what_telephone_services_send_is_valid(kind: type[Phone]) -> None:
    found = validator(kind.service, "receive")
    phone = kind()
    audio = phone.media(bytes(phone.frame_bytes))
    messages = [phone.hello()[-1], audio, phone.dtmf("5"), phone.played("12"), phone.stop()]
    for message in messages:
        if isinstance(message, str):
            found.validate(json.loads(message))
    assert not found.is_valid({"event": "start"})
    assert not found.is_valid({"event": "news"})
