"""openai-python's own types as the oracle of what this server sends, and of what it must answer."""

from __future__ import annotations

from typing import Any, get_args

from openai.types.live.client_event import ClientEvent
from openai.types.live.connect_client_event import ConnectClientEvent
from openai.types.live.server_event import ServerEvent
from pydantic import BaseModel


def _by_type(*unions: Any) -> dict[str, type[BaseModel]]:
    found = {}
    for union in unions:
        for model in get_args(get_args(union)[0]):
            (name,) = get_args(model.model_fields["type"].annotation)
            found[name] = model
    return found


CLIENT_EVENTS = sorted(_by_type(ClientEvent, ConnectClientEvent))
"""Types of all events that a client may send on a primary socket or a sideband."""

_SERVER_EVENTS = _by_type(ServerEvent)


def check(event: dict[str, Any]) -> None:
    """Assert that an event has a type of the API, all its fields in the right types, and no others."""
    model = _SERVER_EVENTS[event["type"]].model_validate(event, strict=True)
    _assert_no_extras(model)


def _assert_no_extras(value: object) -> None:
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{type(value).__name__} has no {value.model_extra}"
        for name in type(value).model_fields:
            _assert_no_extras(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            _assert_no_extras(item)
