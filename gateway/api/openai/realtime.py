"""WebSocket `/v1/realtime`: the OpenAI Realtime API (GA), in JSON messages with base64 audio.

The server sends `session.created`. The client configures the session with `session.update` and sends
`input_audio_buffer.append`. The first audio starts the session; from then on time passes, with silence for audio that
does not come. A response is one stretch of agent speech: `realtime_responses` cuts them. The model decides when the
agent speaks and stops, so that most client events are acknowledged and change nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, field_validator

from gateway.api.connection import Connection
from gateway.api.openai import endpoint
from gateway.api.openai import realtime_events as events
from gateway.api.openai.channel import EventChannel, decode_base64
from gateway.api.openai.client_events import ClientEvent
from gateway.api.openai.config import check_model, check_size, live_limits, validate
from gateway.api.openai.errors import NORMAL_CLOSURE, OpenAIError, end_error, translate
from gateway.api.openai.realtime_config import RealtimeConfig
from gateway.api.openai.realtime_items import Items, created_item
from gateway.api.openai.realtime_responses import Responses, UserTurns
from gateway.audio.duplex import DuplexCodec
from gateway.audio.squelch import Squelch
from gateway.errors import EngineUnavailable, GatewayError, HandshakeTimeout
from gateway.session.admission import Slot
from gateway.session.caller import Caller
from gateway.session.events import AgentAudio, Ended, Event
from gateway.session.input_queue import InputQueue
from gateway.session.request import sampling_params
from gateway.session.runtime import Runtime
from gateway.telemetry.metrics import Api

PATH = "/v1/realtime"

SETTLE_S = 0.25
"""The session starts this long after the first audio and the latest update: LiveKit sends its configuration in three
updates, and Pipecat the instructions with the first audio."""

# Audio that waits for the start of the session, in characters of base64; more of it starts the session at once.
_EARLY_CHARACTERS = 2**20
# Audio that Pipecat may send again after `input_audio_buffer.clear`: as much as its setting usually has.
_REPEATED_S = 2.0
_MAX_METADATA = 16


class TruncateItem(BaseModel):
    """Fields of `conversation.item.truncate`."""

    item_id: str = Field(max_length=128)
    content_index: int = Field(strict=True, ge=0, lt=2**31)
    audio_end_ms: int = Field(strict=True, ge=0, lt=2**53)


class CreateResponse(BaseModel):
    """Field `response` of `response.create`. All but the metadata is ignored."""

    metadata: dict[str, str] | None = None

    @field_validator("metadata", mode="before")
    @classmethod
    def _few(cls, metadata: object) -> object:
        # Before the entries: 9,000 that are not valid take 90 ms.
        if isinstance(metadata, dict) and len(metadata) > _MAX_METADATA:
            raise ValueError(f"expected at most {_MAX_METADATA} entries")
        return metadata


class ItemReference(BaseModel):
    """Field of the events that name an item."""

    item_id: str = Field(max_length=128)


def router(runtime: Runtime) -> APIRouter:
    """Make the routes, to be included in an app. What the API has and this server has not is answered with 404."""
    api = endpoint.OpenAIApi(Api.REALTIME, PATH, PATH, _serve, "realtime", _check, always_reserves=True)
    return endpoint.router(runtime, api)


async def _check(connection: Connection, runtime: Runtime) -> None:
    """Refuse what cannot be served before the connection is accepted: after that, LiveKit connects again at once."""
    query = connection.query
    if "realtime" in connection.headers.get("openai-beta", ""):
        raise OpenAIError("beta_not_supported", "this server has the GA version of the API, not the beta version")
    if query.get("call_id") is not None or query.get("intent", "realtime") != "realtime":
        raise OpenAIError("unsupported_value", "this server has neither SIP or WebRTC calls nor transcription")
    if (model := query.get("model")) is not None:
        check_model(model, runtime, "model")
    if not await runtime.readiness.ready():
        raise EngineUnavailable("the models are not available")


async def _serve(connection: Connection, runtime: Runtime, caller: Caller, slot: Slot | None) -> None:
    await RealtimeTransport(connection, runtime).serve(caller, slot)


class RealtimeTransport:
    """The events of one connection. See `LiveTransport`."""

    def __init__(self, connection: Connection, runtime: Runtime) -> None:
        self._connection = connection
        self._runtime = runtime
        self._channel = EventChannel(connection, events.CLIENT_EVENTS, events.error_event)
        # Reader and writer both send events that belong together.
        self._sending = asyncio.Lock()
        self._config = RealtimeConfig.default(runtime)
        self._items = Items()
        self._responses = Responses(self._items, self._config)
        self._turns = UserTurns(self._items, self._responses, runtime.manifest.sample_rate)
        self._squelch = Squelch(runtime.manifest.sample_rate)
        self._early: list[bytes] = []
        self._sent: deque[bytes] = deque()
        self._cleared = False
        self._audio: InputQueue | None = None
        self._input: DuplexCodec
        self._output: DuplexCodec

    async def serve(self, caller: Caller, slot: Slot | None) -> None:
        """Wait for the first audio, run the session and close. Raises TransportClosed."""
        runtime, config = self._runtime, self._config
        try:
            await self._emit(events.SessionCreated(session=config.echo()))
            await self._receive_first_audio(runtime.settings.openai_start_seconds)
            self._input, self._output = config.codecs(runtime.manifest.sample_rate)
            limits = live_limits(runtime)
            sampling = sampling_params(config.params, runtime)
            opened = runtime.live_sessions.open(config.persona, sampling, caller, "silence", limits, slot)
            async with opened as session:
                ended = await session.run(self)
        except (OpenAIError, GatewayError) as error:
            if slot is not None:
                slot.cancel()
            refusal = translate(error) if isinstance(error, GatewayError) else error
            await self._channel.send_error(refusal, None)
            await self._connection.close(refusal.close_code, refusal.message)
            return
        # The slot is free before the close frame is sent, so that the client may reconnect at once.
        reported = end_error(ended)
        await self._connection.close(reported.close_code if reported else NORMAL_CLOSURE, ended.message)

    async def receive(self, audio: InputQueue) -> None:
        """Read events until the client disconnects, which raises TransportClosed. Raises GatewayError."""
        self._audio = audio
        for data in self._early:
            try:
                await self._put(data, audio)
            except OpenAIError as error:
                await self._channel.send_error(error, None)
        self._early.clear()
        while True:
            await self._answer(await self._channel.receive())

    async def send(self, event: Event) -> None:
        """Send the events of an agent frame, or the error that ends the session."""
        if isinstance(event, AgentAudio):
            frame = event.frame
            pcm = self._squelch.apply(frame.pcm, frame.text)
            # The codec encodes every frame: its resampler would join the end of a response to the next one.
            audio = self._output.encode(pcm)
            await self._emit(*self._responses.frame(frame.text, self._squelch.quiet_frames, audio))
        elif isinstance(event, Ended) and (error := end_error(event)) is not None:
            await self._emit(*self._responses.fail(error))
            await self._channel.send_error(error, None)

    def abort(self) -> None:
        """Close the connection at once, without sending what is queued."""
        self._connection.abort()

    async def _receive_first_audio(self, seconds: float) -> None:
        """Answer events until the session is to start: after audio, or the request of a response. Raises GatewayError.

        Audio waits in `_early`.
        """
        loop = asyncio.get_running_loop()
        waiting, size = False, 0
        try:
            async with asyncio.timeout(seconds) as limit:
                while size < _EARLY_CHARACTERS:
                    event = await self._channel.receive()
                    await self._answer(event)
                    size += event.size if event.type == events.APPEND else 0
                    begins = event.type in (events.APPEND, events.CREATE_RESPONSE) and not waiting
                    waiting = waiting or begins
                    if begins or (waiting and event.type == events.UPDATE):
                        limit.reschedule(loop.time() + SETTLE_S)
        except TimeoutError:
            if not waiting:
                raise HandshakeTimeout(f"no audio came within {seconds:g} s") from None

    async def _answer(self, event: ClientEvent) -> None:
        try:
            await _ANSWERS[event.type](self, event)
        except OpenAIError as error:
            await self._channel.send_error(error, event.event_id)

    async def _update(self, event: ClientEvent) -> None:
        check_size(event.size)
        self._config.update(event.fields.get("session"), self._runtime, fixed=self._audio is not None)
        self._turns.configure(self._config.turn_detection)
        await self._emit(events.SessionUpdated(session=self._config.echo()))

    async def _append(self, event: ClientEvent) -> None:
        data = decode_base64(event.fields.get("audio"))
        cleared, self._cleared = self._cleared, False
        if cleared and b"".join(self._sent).endswith(data):
            return
        self._remember(data)
        if self._audio is None:
            self._early.append(data)
        else:
            await self._put(data, self._audio)

    async def _put(self, data: bytes, audio: InputQueue) -> None:
        async for pcm in self._channel.decode(data, self._input):
            await audio.put(pcm)
            await self._emit(*self._turns.audio(pcm))

    def _remember(self, data: bytes) -> None:
        """Keep the latest audio, in order to recognise what is sent again after a clear."""
        self._sent.append(data)
        kept = sum(map(len, self._sent))
        while kept - len(self._sent[0]) > _REPEATED_S * 2 * self._runtime.manifest.sample_rate:
            kept -= len(self._sent.popleft())

    async def _commit(self, _: ClientEvent) -> None:
        await self._emit(*self._turns.commit())

    async def _clear(self, _: ClientEvent) -> None:
        """Acknowledge. The model has the audio already; Pipecat sends the latest of it again, which is left out."""
        self._cleared = True
        await self._emit(events.Cleared())

    async def _create_item(self, event: ClientEvent) -> None:
        item, after = created_item(event.fields.get("item")), event.fields.get("previous_item_id")
        previous = self._items.add(item, after if isinstance(after, str) else None)
        await self._emit(
            events.ItemAdded(item=item, previous_item_id=previous),
            events.ItemDone(item=item, previous_item_id=previous),
        )

    async def _retrieve_item(self, event: ClientEvent) -> None:
        item_id = validate(ItemReference, event.fields, "").item_id
        item = self._items.get(item_id)
        if item is None:
            # Pipecat goes on after this code.
            raise OpenAIError("item_retrieve_invalid_item_id", f"there is no item {item_id!r}", "item_id")
        await self._emit(events.ItemRetrieved(item=item))

    async def _delete_item(self, event: ClientEvent) -> None:
        item_id = validate(ItemReference, event.fields, "").item_id
        self._items.remove(item_id)
        await self._emit(events.ItemDeleted(item_id=item_id))

    async def _truncate_item(self, event: ClientEvent) -> None:
        """Acknowledge, whatever the item: an error would end Pipecat's call."""
        asked = validate(TruncateItem, event.fields, "")
        self._items.drop_transcript(asked.item_id)
        await self._emit(events.ItemTruncated(**asked.model_dump()))

    async def _create_response(self, event: ClientEvent) -> None:
        """Take note. The agent speaks when the model does, and then the response carries the metadata."""
        response: Any = event.fields.get("response")
        self._responses.request(validate(CreateResponse, {} if response is None else response, "response").metadata)

    async def _cancel_response(self, event: ClientEvent) -> None:
        asked = event.fields.get("response_id")
        if self._responses.open_id is None or asked not in (None, self._responses.open_id):
            # LiveKit ignores messages that begin so, and Pipecat this code.
            raise OpenAIError("response_cancel_not_active", "Cancellation failed: no active response found")
        await self._emit(*self._responses.cancel())

    async def _clear_output(self, _: ClientEvent) -> None:
        """Acknowledge. Audio that has been sent is the client's to discard."""
        if self._responses.last_id is None:
            raise OpenAIError("response_cancel_not_active", "Cancellation failed: no response found")
        await self._emit(events.OutputCleared(response_id=self._responses.last_id))

    async def _emit(self, *batch: events.ServerEvent) -> None:
        """Send events that belong together."""
        if not batch:
            return
        async with self._sending:
            for event in batch:
                event.event_id = self._channel.new_id()
                await self._channel.send(event)


_ANSWERS: dict[str, Callable[[RealtimeTransport, ClientEvent], Awaitable[None]]] = {
    events.UPDATE: RealtimeTransport._update,
    events.APPEND: RealtimeTransport._append,
    events.COMMIT: RealtimeTransport._commit,
    events.CLEAR: RealtimeTransport._clear,
    events.CREATE_ITEM: RealtimeTransport._create_item,
    events.RETRIEVE_ITEM: RealtimeTransport._retrieve_item,
    events.DELETE_ITEM: RealtimeTransport._delete_item,
    events.TRUNCATE_ITEM: RealtimeTransport._truncate_item,
    events.CREATE_RESPONSE: RealtimeTransport._create_response,
    events.CANCEL_RESPONSE: RealtimeTransport._cancel_response,
    events.CLEAR_OUTPUT: RealtimeTransport._clear_output,
}
