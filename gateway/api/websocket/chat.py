"""WebSocket `/api/chat`: the reference server's protocol, for its clients and those of Moshi.

The query holds the parameters. All messages are binary, and their first byte is their kind. The server sends a
handshake when the models hold the prompt, then Ogg/Opus, one page per frame, and text. The client sends Ogg/Opus.

Unlike the reference, this server honours the sampling parameters, keeps the latest audio that arrives before the
handshake, serves many clients at once, and sends an error message before it closes.

`/gated/api/chat` is the same, but sends no audio while the agent is silent. Clients that decide by the arrival of audio
whether the agent speaks need it, such as `livekit-plugins-nvidia`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from time import perf_counter

from fastapi import APIRouter
from pydantic import BaseModel, Field, ValidationError

from gateway.api.asyncapi import Channel
from gateway.api.connection import Connection
from gateway.api.websocket.endpoint import FAILURE_CODES, WebSocketEndpoint, WebSocketTransport
from gateway.audio.ogg_opus import OggOpusReader, OggOpusWriter
from gateway.audio.squelch import Squelch
from gateway.errors import InvalidRequest, PayloadTooLarge
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason
from gateway.session.input_queue import InputQueue
from gateway.session.limits import LiveLimits
from gateway.session.live import TransportClosed
from gateway.session.params import MAX_PROMPT_CHARACTERS, SEED_BITS, LiveParams, Temperature, TopK
from gateway.session.runtime import Runtime
from gateway.telemetry.metrics import Api

PATH = "/api/chat"
GATED_PATH = "/gated/api/chat"

_KINDS = "The first byte is the kind: 0 handshake, 1 Ogg/Opus, 2 text in UTF-8, 5 error, 6 ping"
CHANNELS = tuple(
    Channel(name, path, description, client_binary=_KINDS, server_binary=_KINDS)
    for name, path, description in (
        ("chat", PATH, "The protocol of Moshi and of the reference server."),
        ("gated-chat", GATED_PATH, "The same, without audio while the agent is silent."),
    )
)

HANDSHAKE, AUDIO, TEXT, ERROR, PING = b"\x00", b"\x01", b"\x02", b"\x05", b"\x06"

MAX_OGG_BYTES = 65_536
"""Largest audio message: more than the largest Ogg page, 65,307 bytes. A page of 80 ms has about 300."""

# Work on a client's Ogg stream occupies the event loop for this long at once, and then pauses, so that a stream of
# headers or tiny packets takes at most a fifth of the loop's time. A usual message takes 0.2 ms.
_TURN_S = 0.002
_PAUSE_S = 0.008
# A piece this large takes less than a turn: at most 151 pages.
_PIECE_BYTES = 4096

# The reference's page disconnects after 10 s without a message. A long prompt may take longer.
PING_S = 4.0

# Audio from before the handshake delays every answer by its length. Of a client that sends in real time so many frames
# are used.
_EARLY_FRAMES = 3
# `livekit-plugins-nvidia` queues its audio until the handshake and then sends it at once.
_BURST_S = 1.0

_UNSEEDED = -1
# Combines two seeds into one; any fixed odd factor would do.
_SEED_FACTOR = 1_000_003


class ChatQuery(BaseModel):
    """The query parameters of the reference's page and command line. Others are ignored."""

    voice_prompt: str = Field("", max_length=200)
    """The name of a preset, or of its file in the release."""
    text_prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARACTERS)
    seed: int | None = Field(None, ge=_UNSEEDED, lt=2**SEED_BITS)
    text_seed: int | None = None
    audio_seed: int | None = None
    """The page sends two seeds. Together they are the seed if `seed` is missing."""
    text_temperature: Temperature | None = None
    text_topk: TopK | None = None
    audio_temperature: Temperature | None = None
    audio_topk: TopK | None = None

    def params(self) -> LiveParams:
        """Return the parameters by the names the other APIs use."""
        return LiveParams(
            voice=self.voice_prompt.removesuffix(".pt") or None,
            system_prompt=None,
            text_prompt=self.text_prompt,
            greedy=None,
            seed=self._seed(),
            text_temperature=self.text_temperature,
            text_top_k=self.text_topk,
            audio_temperature=self.audio_temperature,
            audio_top_k=self.audio_topk,
            on_gap=None,
        )

    def _seed(self) -> int | None:
        if self.seed is not None:
            return None if self.seed == _UNSEEDED else self.seed
        if self.text_seed is None and self.audio_seed is None:
            return None
        return ((self.text_seed or 0) * _SEED_FACTOR + (self.audio_seed or 0)) % (1 << SEED_BITS)


def router(runtime: Runtime) -> APIRouter:
    """Make the route, to be included in an app."""
    routes = APIRouter()
    chat, gated = WebSocketEndpoint(runtime, ChatTransport), WebSocketEndpoint(runtime, GatedChatTransport)
    routes.add_websocket_route(PATH, chat, name="chat")  # type: ignore[arg-type]
    routes.add_websocket_route(GATED_PATH, gated, name="gated-chat")  # type: ignore[arg-type]
    return routes


class ChatTransport(WebSocketTransport):
    """The messages of one `/api/chat` connection."""

    api = Api.CHAT

    def __init__(self, connection: Connection, runtime: Runtime) -> None:
        super().__init__(connection, runtime)
        self._writer: OggOpusWriter
        self._head = b""
        self._squelch: Squelch | None = None
        self._ready = False

    def limits(self) -> LiveLimits:
        """Return the limits of the session. Audio of a microphone from before the handshake is used in part."""
        return replace(super().limits(), early_frames=_EARLY_FRAMES)

    async def handshake(self) -> LiveParams:
        """Read the query."""
        try:
            # An empty value means "not set", except for `text_prompt`, where it means "no prompt".
            given = {name: value for name, value in self.connection.query.items() if value or name == "text_prompt"}
            return ChatQuery.model_validate(given).params()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            name = str(first["loc"][0])
            raise InvalidRequest(f"{name}: {first['msg']}", field=name) from None

    async def receive(self, audio: InputQueue) -> None:
        """Read Ogg/Opus, and send pings until the handshake. Other messages are ignored, as the reference does."""
        pings = asyncio.create_task(self._ping())
        reader = OggOpusReader()
        try:
            while True:
                message = await self.connection.receive()
                if isinstance(message, bytes) and message[:1] == AUDIO and not audio.closed:
                    if len(message) > MAX_OGG_BYTES:
                        raise PayloadTooLarge(f"expected at most {MAX_OGG_BYTES} bytes of Ogg at once")
                    await _decode(message[1:], reader, audio)
        finally:
            pings.cancel()

    async def send(self, event: Event) -> None:
        """Send an event. The text of a frame comes before its audio. The protocol has no warnings."""
        send = self.connection.send
        if isinstance(event, AgentAudio):
            if event.frame.text:
                await send(TEXT + event.frame.text.encode())
            if self._squelch is None or self._squelch.passes(event.frame.pcm, event.frame.text):
                await send(AUDIO + self._head + self._writer.write(event.frame.pcm))
                self._head = b""
        elif isinstance(event, Ready):
            self._ready = True
            self._writer = OggOpusWriter()
            await send(HANDSHAKE)
            self._head = self._writer.head()
            if self._squelch is None:
                await send(AUDIO + self._head)
                self._head = b""
        elif isinstance(event, Ended) and event.reason is not Reason.COMPLETED:
            await self.send_error(FAILURE_CODES.get(event.reason, event.reason.value), event.message)

    async def send_error(self, code: str, message: str) -> None:
        """Send the message of an error; the protocol has no codes."""
        await self.connection.send(ERROR + message.encode())

    async def _ping(self) -> None:
        with suppress(TransportClosed):
            while not self._ready:
                await asyncio.sleep(PING_S)
                await self.connection.send(PING)


class GatedChatTransport(ChatTransport):
    """The messages of one `/gated/api/chat` connection."""

    def __init__(self, connection: Connection, runtime: Runtime) -> None:
        super().__init__(connection, runtime)
        self._squelch = Squelch(runtime.manifest.sample_rate)

    def limits(self) -> LiveLimits:
        """Return the limits of the session. Its client has a microphone, and queues what it receives."""
        return replace(super().limits(), lead_frames=_EARLY_FRAMES, burst=_BURST_S)


async def _decode(data: bytes, reader: OggOpusReader, audio: InputQueue) -> None:
    """Decode a piece of an Ogg stream into the queue, and close the queue at the end of the stream."""
    turn_ends = perf_counter() + _TURN_S
    for at in range(0, len(data), _PIECE_BYTES):
        for pcm in reader.read(data[at : at + _PIECE_BYTES]):
            await audio.put(pcm)
            if audio.closed:
                return
            if perf_counter() > turn_ends:
                await asyncio.sleep(_PAUSE_S)
                turn_ends = perf_counter() + _TURN_S
        if perf_counter() > turn_ends:
            await asyncio.sleep(_PAUSE_S)
            turn_ends = perf_counter() + _TURN_S
    if reader.ended:
        audio.close()
