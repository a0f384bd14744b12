"""Client events of both OpenAI APIs: JSON objects with a type and, optionally, an id."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from gateway.api.openai.errors import OpenAIError

MAX_ID_CHARACTERS = 512
# 1 MiB of JSON holds 340,000 lists, which take 140 ms to parse; this many values take 8 ms.
_MAX_VALUES = 20_000


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """A client event: its type, its id, all its fields, not checked yet, and the size of its message in characters."""

    type: str
    event_id: str | None
    fields: dict[str, Any]
    size: int


class ClientEventError(OpenAIError):
    """A message is not a client event. `client_event_id`: its id, if it has one."""

    def __init__(self, code: str, message: str, param: str | None, client_event_id: str | None) -> None:
        super().__init__(code, message, param)
        self.client_event_id = client_event_id


def parse(message: str | bytes, known: Collection[str]) -> ClientEvent:
    """Parse a message. Raises ClientEventError if it is not JSON or its type is not one of the `known`."""
    if isinstance(message, bytes):
        raise ClientEventError("invalid_json", "expected a JSON text message, got binary data", None, None)
    if len(message) > _MAX_VALUES and sum(map(message.count, "[{,")) > _MAX_VALUES:
        raise ClientEventError("invalid_json", f"expected at most {_MAX_VALUES} values", None, None)
    try:
        fields = from_json(message, allow_inf_nan=False)
    except ValueError as error:
        raise ClientEventError("invalid_json", f"expected JSON: {error}", None, None) from None
    if not isinstance(fields, dict):
        raise ClientEventError("invalid_json", "expected a JSON object", None, None)
    event_id, kind = fields.get("event_id"), fields.get("type")
    if event_id is not None and not (isinstance(event_id, str) and len(event_id) <= MAX_ID_CHARACTERS):
        expected = f"expected a string of at most {MAX_ID_CHARACTERS} characters"
        raise ClientEventError("invalid_value", expected, "event_id", None)
    if not isinstance(kind, str):
        raise ClientEventError("unknown_event", "expected the event's type, a string", "type", event_id)
    if kind not in known:
        raise ClientEventError("unknown_event", f"no client event has the type {kind[:100]!r}", "type", event_id)
    return ClientEvent(kind, event_id, fields, len(message))
