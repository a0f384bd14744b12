"""WebSocket `/v1/converse`: a live session in JSON text messages and binary PCM, for browsers and scripts.

The client sends a `start` message, then PCM in binary messages, then optionally `end`. The server sends `ready`, then a
binary message per agent frame, preceded by `text` if the frame has any, `stats`, `warning`, and `error` or `ended`
before the close. `messages` defines all of them.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from gateway.api.asyncapi import Channel
from gateway.api.connection import Connection
from gateway.api.websocket import messages
from gateway.api.websocket.endpoint import FAILURE_CODES, WebSocketEndpoint, WebSocketTransport
from gateway.audio.stream import PCM_PIECE_BYTES, PcmReader, to_bytes
from gateway.errors import HandshakeTimeout, InvalidRequest, UnsupportedMediaType
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason
from gateway.session.input_queue import InputQueue
from gateway.session.params import LiveParams
from gateway.session.runtime import Runtime
from gateway.telemetry.metrics import Api

PATH = "/v1/converse"

CHANNEL = Channel(
    "converse",
    PATH,
    "A live session in JSON text messages and binary PCM. The first message is Start, the answer Ready.",
    client=(messages.Start, messages.End),
    server=(messages.Ready, messages.Text, messages.Stats, messages.Warning, messages.Error, messages.Ended),
    client_binary="The user's audio: whole samples in the announced format",
    server_binary="One agent frame of 80 ms, in the format that Ready states",
)


def router(runtime: Runtime) -> APIRouter:
    """Make the route, to be included in an app."""
    routes = APIRouter()
    endpoint = WebSocketEndpoint(runtime, ConverseTransport)
    routes.add_websocket_route(PATH, endpoint, name="converse")  # type: ignore[arg-type]
    return routes


class ConverseTransport(WebSocketTransport):
    """The messages of one `/v1/converse` connection."""

    api = Api.CONVERSE

    def __init__(self, connection: Connection, runtime: Runtime) -> None:
        super().__init__(connection, runtime)
        self._format = messages.AudioParams()
        self._reader: PcmReader
        self._max_latency = 0.0

    async def handshake(self) -> LiveParams:
        """Read the `start` message."""
        limit = self.runtime.settings.handshake_seconds
        try:
            async with asyncio.timeout(limit):
                message = await self.connection.receive()
        except TimeoutError:
            raise HandshakeTimeout(f"no start message came within {limit:g} s") from None
        if isinstance(message, bytes):
            raise UnsupportedMediaType("expected a start message (JSON text) first, got binary data")
        start = messages.read(message)
        if not isinstance(start, messages.Start):
            raise InvalidRequest("expected a start message first, got end")
        self._format = start.audio
        self._reader = PcmReader(start.audio.format, start.audio.sample_rate, self.runtime.manifest.sample_rate)
        return start

    async def receive(self, audio: InputQueue) -> None:
        """Read PCM and `end`. Messages after `end` are ignored."""
        receive, read = self.connection.receive, self._reader.read
        while True:
            message = await receive()
            if isinstance(message, bytes):
                for at in range(0, len(message), PCM_PIECE_BYTES):
                    if audio.closed:
                        break
                    await audio.put(read(message[at : at + PCM_PIECE_BYTES]))
            elif isinstance(messages.read(message), messages.Start):
                raise InvalidRequest("expected audio or an end message, got another start message")
            elif not audio.closed:
                await audio.put(self._reader.finish())
                audio.close()

    async def send(self, event: Event) -> None:
        """Send an event. The text of a frame comes before its audio, `stats` follow about once a second."""
        send = self.connection.send
        if isinstance(event, AgentAudio):
            frame = event.frame
            if frame.text:
                await send(messages.Text(index=frame.index, text=frame.text).model_dump_json())
            await send(to_bytes(frame.pcm, self._format.format))
            self._max_latency = max(self._max_latency, event.latency)
            frame_rate = self.runtime.manifest.frame_rate
            if frame.index and int((frame.index + 1) / frame_rate) > int(frame.index / frame_rate):
                await send(self._stats(event).model_dump_json())
        elif isinstance(event, Ready):
            await send(self._ready(event).model_dump_json())
        elif isinstance(event, Ended):
            if event.error is not None and event.reason is Reason.CLIENT_ERROR:
                await self.send_error(event.error.code, event.message)
            elif event.reason in FAILURE_CODES:
                await self.send_error(FAILURE_CODES[event.reason], event.message)
            await send(_ended(event).model_dump_json())
        else:
            warning = messages.Warning(code=event.code, message=event.message, seconds_left=event.seconds_left)
            await send(warning.model_dump_json(exclude_none=True))

    async def send_error(self, code: str, message: str) -> None:
        """Send an `error` message."""
        await self.connection.send(messages.Error(code=code, message=message).model_dump_json())

    def _stats(self, event: AgentAudio) -> messages.Stats:
        stats = messages.Stats(
            index=event.frame.index,
            latency_ms=round(1000 * self._max_latency, 2),
            dropped_frames=event.dropped,
            queued_ms=1000 * event.queued / self.runtime.manifest.frame_rate,
        )
        self._max_latency = 0.0
        return stats

    def _ready(self, ready: Ready) -> messages.Ready:
        manifest = self.runtime.manifest
        return messages.Ready(
            conversation_id=ready.conversation_id,
            voice=ready.voice,
            seed=ready.seed,
            audio=messages.AudioFormat(format=self._format.format, sample_rate=manifest.sample_rate),
            frame_size=manifest.frame_size,
            setup_ms=round(1000 * ready.setup_seconds, 2),
            resume=_resume(ready),
            index=ready.index,
            missed_text=ready.missed_text,
        )


def _resume(ready: Ready) -> messages.Resume | None:
    return None if ready.resume is None else messages.Resume(token=ready.resume.token, seconds=ready.resume.seconds)


def _ended(ended: Ended) -> messages.Ended:
    summary = ended.summary
    return messages.Ended(
        reason=ended.reason.value,
        message=ended.message,
        frames=summary.frames,
        seconds=summary.seconds,
        transcript=summary.transcript,
        dropped_frames=summary.dropped_frames,
        late_frames=summary.late_frames,
    )
