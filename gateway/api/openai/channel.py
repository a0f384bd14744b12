"""The events of one WebSocket, in both directions, and the audio in them."""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from itertools import count
from uuid import uuid4

from pydantic import BaseModel

from gateway.api.connection import Connection
from gateway.api.loop_share import LoopShare
from gateway.api.openai.client_events import ClientEvent, ClientEventError, parse
from gateway.api.openai.errors import OpenAIError
from gateway.audio.duplex import DuplexCodec
from gateway.audio.samples import Floats
from gateway.errors import AudioError

ErrorEvent = Callable[[str, OpenAIError, str | None], BaseModel]
"""Makes the event of an error from a new event id, the error, and the id of the client event at fault."""


class EventChannel:
    """Receives client events and sends server events. Client events take a bounded share of the event loop."""

    def __init__(self, connection: Connection, client_events: Collection[str], error_event: ErrorEvent) -> None:
        """`client_events`: the types of the API."""
        self._connection = connection
        self._client_events = client_events
        self._error_event = error_event
        self._share = LoopShare()
        self._ids = _event_ids()

    def new_id(self) -> str:
        """Return an id that no other event has."""
        return next(self._ids)

    async def receive(self) -> ClientEvent:
        """Return the next client event. Messages that are none are answered with an error.

        Raises PayloadTooLarge, TransportClosed.
        """
        while True:
            await self._share.pause_if_due()
            message = await self._share.wait(self._connection.receive())
            try:
                return parse(message, self._client_events)
            except ClientEventError as error:
                await self.send_error(error, error.client_event_id)

    async def decode(self, data: bytes, codec: DuplexCodec) -> AsyncIterator[Floats]:
        """Decode the audio of an append event, in pieces [T] float32. Raises OpenAIError."""
        for at in range(0, len(data), codec.piece_bytes):
            try:
                yield codec.decode(data[at : at + codec.piece_bytes])
            except AudioError as error:
                raise OpenAIError("invalid_value", error.message, "audio") from None
            await self._share.pause_if_due()

    async def send(self, event: BaseModel) -> None:
        """Send an event, without fields that are None. Raises TransportClosed."""
        await self._connection.send(event.model_dump_json(exclude_none=True))

    async def send_error(self, error: OpenAIError, client_event_id: str | None) -> None:
        """Send an error. Raises TransportClosed."""
        await self.send(self._error_event(self.new_id(), error, client_event_id))


def decode_base64(encoded: object) -> bytes:
    """Decode the field `audio` of an append event. Raises OpenAIError."""
    if not isinstance(encoded, str):
        raise OpenAIError("invalid_value", "expected audio in base64", "audio")
    try:
        return a2b_base64(encoded, strict_mode=True)
    except ValueError as error:
        raise OpenAIError("invalid_value", f"expected audio in base64: {error}", "audio") from None


def _event_ids() -> Iterator[str]:
    """Yield ids that no other connection has."""
    prefix = uuid4().hex[:16]
    return (f"event_{prefix}_{number}" for number in count())
