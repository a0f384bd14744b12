"""The items of a Realtime conversation. The model does not see them: they are kept for clients that ask for them."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Field, RootModel
from pydantic_core import to_json

from gateway.api.openai.config import validate
from gateway.api.openai.errors import OpenAIError
from gateway.api.openai.realtime_events import Item

# Bounds of what one connection occupies; the oldest items are forgotten first.
MAX_ITEMS = 256
MAX_BYTES = 2**20

_CONTENT_TYPES = {
    "user": {"input_text", "input_audio", "input_image"},
    "assistant": {"output_text", "output_audio"},
    "system": {"input_text"},
}


class ContentPart(BaseModel):
    """A part of a message. Audio and images are not kept."""

    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio"]
    text: str | None = None
    transcript: str | None = None


class _Identified(BaseModel):
    id: str | None = Field(default=None, min_length=1, max_length=128)


class Message(_Identified):
    """A message of one of the sides."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: list[ContentPart] = Field(max_length=128)


class FunctionCall(_Identified):
    """A call of a tool, from an earlier conversation."""

    type: Literal["function_call"]
    name: str
    arguments: str
    call_id: str | None = None


class FunctionCallOutput(_Identified):
    """The result of a tool."""

    type: Literal["function_call_output"]
    call_id: str
    output: str


class CreatedItem(RootModel[Annotated[Message | FunctionCall | FunctionCallOutput, Field(discriminator="type")]]):
    """An item that a client creates."""


def new_item_id() -> str:
    """Return an id for an item."""
    return f"item_{uuid4().hex[:24]}"


def message(item_id: str, role: Literal["user", "assistant"], status: str, content: list[dict[str, Any]]) -> Item:
    """Make a message of this server."""
    return {
        "id": item_id, "object": "realtime.item", "type": "message", "status": status, "role": role, "content": content
    }  # fmt: skip


def created_item(value: object) -> Item:
    """Check the item of `conversation.item.create`; return it as it is kept. Raises OpenAIError."""
    item = validate(CreatedItem, value, "item").root
    if isinstance(item, Message):
        for number, part in enumerate(item.content):
            if part.type not in _CONTENT_TYPES[item.role]:
                param = f"item.content.{number}.type"
                raise OpenAIError("invalid_value", f"{param}: a message of the {item.role} has no {part.type}", param)
    fields = item.model_dump(exclude_none=True)
    for part in fields.get("content", ()):
        if part["type"] == "input_audio":
            part.setdefault("transcript", None)
    return {"id": new_item_id(), "object": "realtime.item", "status": "completed", **fields}


class Items:
    """The items of one conversation, in order."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._order: list[str] = []
        self._sizes: dict[str, int] = {}

    @property
    def last_id(self) -> str | None:
        """Id of the last item, if there is one."""
        return self._order[-1] if self._order else None

    def get(self, item_id: str) -> Item | None:
        """Return an item, or None."""
        return self._items.get(item_id)

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Add an item, and return the id of the one before it.

        `after`: id of that one, "root" for the beginning; otherwise, and if it is unknown, the item is the last one.
        """
        item_id = item["id"]
        self.remove(item_id)
        if after == "root":
            position = 0
        elif after in self._items:
            position = self._order.index(after) + 1
        else:
            position = len(self._order)
        self._order.insert(position, item_id)
        self._items[item_id], self._sizes[item_id] = item, len(to_json(item))
        previous = self._order[position - 1] if position else None
        while len(self._items) > MAX_ITEMS or sum(self._sizes.values()) > MAX_BYTES:
            self.remove(next(iter(self._items)))
        return previous

    def replace(self, item: Item) -> None:
        """Replace an item by its final state, if it exists."""
        if item["id"] in self._items:
            self._items[item["id"]], self._sizes[item["id"]] = item, len(to_json(item))

    def remove(self, item_id: str) -> None:
        """Remove an item, if it exists."""
        if self._items.pop(item_id, None) is not None:
            self._order.remove(item_id)
            del self._sizes[item_id]

    def drop_transcript(self, item_id: str) -> None:
        """Remove the text of an item, whose audio was truncated."""
        for part in self._items.get(item_id, {}).get("content", ()):
            part.pop("transcript", None)
