"""openai-python's own types as the oracle of what this server sends, and of what it must answer.

They are imported on first use: the import takes a quarter of the collection's time, in every worker.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, get_args

from pydantic import BaseModel


@cache
def _by_type(*unions: str) -> dict[str, type[BaseModel]]:
    """The models of `unions`, each a module and a name in `openai.types`, by the type of their events."""
    found = {}
    for union in unions:
        module, _, name = union.rpartition(".")
        for model in get_args(get_args(getattr(import_module(f"openai.types.{module}"), name))[0]):
            (kind,) = get_args(model.model_fields["type"].annotation)
            found[kind] = model
    return found


_CLIENT_EVENTS = "live.client_event.ClientEvent", "live.connect_client_event.ConnectClientEvent"
"""On a primary socket and on a sideband."""
_REALTIME_CLIENT_EVENTS = "realtime.realtime_client_event.RealtimeClientEvent"
_SERVER_EVENTS = "live.server_event.ServerEvent"
_REALTIME_SERVER_EVENTS = "realtime.realtime_server_event.RealtimeServerEvent"
_SESSION_ONLY = {"object", "id"}
"""Fields of a Realtime session that the API sends and openai-python has no types for."""


def client_events() -> list[str]:
    """Types of all events that a client of the Live API may send."""
    return sorted(_by_type(*_CLIENT_EVENTS))


def realtime_client_events() -> list[str]:
    """Types of all events that a client of the Realtime API may send."""
    return sorted(_by_type(_REALTIME_CLIENT_EVENTS))


def session_fields() -> set[str]:
    """The fields of `session.start`'s `session`."""
    session = _by_type(*_CLIENT_EVENTS)["session.start"].model_fields["session"].annotation
    assert session is not None
    return set(session.model_fields)


def voices() -> set[str]:
    """OpenAI's voices."""
    return set(get_args(import_module("openai.types.live").BuiltInVoice))


def check_client(event: dict[str, Any]) -> None:
    """Assert that an event is one of the Live API that a client may send, without other fields."""
    _assert_no_extras(_by_type(*_CLIENT_EVENTS)[event["type"]].model_validate(event, strict=True))


def check_realtime_client(event: dict[str, Any]) -> None:
    """The same of the Realtime API."""
    _assert_no_extras(_by_type(_REALTIME_CLIENT_EVENTS)[event["type"]].model_validate(event, strict=True))


def check(event: dict[str, Any]) -> None:
    """Assert that an event has a type of the Live API, all its fields in the right types, and no others."""
    _assert_no_extras(_by_type(_SERVER_EVENTS)[event["type"]].model_validate(event, strict=True))


def check_realtime(event: dict[str, Any]) -> None:
    """The same of the Realtime API."""
    if "session" in event:
        known = {name: value for name, value in event["session"].items() if name not in _SESSION_ONLY}
        event = {**event, "session": known}
    _assert_no_extras(_by_type(_REALTIME_SERVER_EVENTS)[event["type"]].model_validate(event, strict=True))


def _assert_no_extras(value: object) -> None:
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{type(value).__name__} has no {value.model_extra}"
        for name in type(value).model_fields:
            _assert_no_extras(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            _assert_no_extras(item)


class Order:
    """Asserts that the events of one Realtime connection come in an order that clients can follow."""

    _OPENING = ("response.output_item.added", "conversation.item.added", "response.content_part.added")
    _CLOSING = (
        "response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done",
        "response.output_item.done", "conversation.item.done", "response.done",
    )  # fmt: skip
    _DELTAS = ("response.output_audio.delta", "response.output_audio_transcript.delta")

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._response: str | None = None
        self._expected: list[str] = []
        self._transcript = ""

    def add(self, event: dict[str, Any]) -> None:
        """The next event."""
        kind = event["type"]
        assert event["event_id"] not in self._ids
        if not self._ids and kind != "error":
            assert kind == "session.created"
        self._ids.add(event["event_id"])
        if self._expected:
            # Events that belong together are not interrupted by others, errors excepted.
            assert kind in (self._expected[0], "error")
        if kind == "response.created":
            assert self._response is None
            self._response, self._transcript = event["response"]["id"], ""
            self._expected = list(self._OPENING)
        elif kind == self._CLOSING[0]:
            self._expected = list(self._CLOSING[1:])
        elif self._expected and kind == self._expected[0]:
            del self._expected[0]
        if kind.startswith("response.") and "response_id" in event:
            assert event["response_id"] == self._response
        if kind in self._DELTAS:
            assert self._response is not None
        if kind == "response.output_audio_transcript.delta":
            self._transcript += event["delta"]
        if kind == "response.output_audio_transcript.done":
            assert event["transcript"] == self._transcript
        if kind == "input_audio_buffer.speech_started":
            assert self._response is None
        if kind == "response.done":
            assert event["response"]["id"] == self._response
            self._response = None
