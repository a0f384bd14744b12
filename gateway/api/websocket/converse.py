"""WebSocket `/v1/converse`: a live call in JSON text messages and binary PCM, for browsers and scripts.

The caller sends a `start` message, then PCM in binary messages, then perhaps `end`; back come `ready`, one binary
message per agent frame with a `text` before it where there is some, `stats`, `warning`, and `error` or `ended` before
the close. `messages` has them all.
"""

from __future__ import annotations

import asyncio
from typing import assert_never

from fastapi import APIRouter

from gateway.api.websocket import messages
from gateway.api.websocket.connection import Connection, Gone
from gateway.api.websocket.session import SessionRequest, WebSocketEndpoint, WebSocketSession
from gateway.audio.stream import PcmReader, to_bytes
from gateway.errors import HandshakeTimeout, InvalidRequest, UnsupportedMediaType
from gateway.session import request as question
from gateway.session.events import AgentAudio, Ended, Event, Ready, WarningEvent
from gateway.session.live import LiveSession
from gateway.session.runtime import Runtime

PATH = "/v1/converse"


def router(runtime: Runtime) -> APIRouter:
    """The route, to be included in an app."""
    routes = APIRouter()
    routes.add_websocket_route(PATH, WebSocketEndpoint(runtime, Converse), name="converse")  # type: ignore[arg-type]
    return routes


class Converse(WebSocketSession):
    """One caller of `/v1/converse`."""

    def __init__(self, runtime: Runtime, connection: Connection) -> None:
        super().__init__(runtime, connection)
        self._audio = messages.AudioParams()
        self._reader: PcmReader
        self._done = False
        self._slowest = 0.0

    async def begin(self) -> SessionRequest:
        """The first message."""
        limit = self.runtime.settings.handshake_seconds
        try:
            async with asyncio.timeout(limit):
                message = await self.connection.receive()
        except TimeoutError:
            raise HandshakeTimeout(f"no start message came within {limit:g} s") from None
        if message is None:
            raise Gone
        if isinstance(message, bytes):
            raise UnsupportedMediaType("expected a start message (JSON text) first, got binary data")
        start = messages.read(message)
        if not isinstance(start, messages.Start):
            raise InvalidRequest("expected a start message first, got end")
        self._audio = start.audio
        self._reader = PcmReader(start.audio.format, start.audio.sample_rate, self.runtime.manifest.sample_rate)
        drawn = question.sampling(start, self.runtime)
        return SessionRequest(question.persona(start, self.runtime), drawn, start.on_gap or "wait")

    async def hear(self, message: str | bytes, live: LiveSession) -> None:
        """PCM, or the wish to end. What comes after that is not heard."""
        if isinstance(message, bytes):
            if not self._done:
                await live.put(self._reader.read(message))
        elif isinstance(messages.read(message), messages.Start):
            raise InvalidRequest("expected audio or an end message, got another start message")
        elif not self._done:
            self._done = True
            await live.put(self._reader.finish())
            live.hang_up()

    async def tell(self, event: Event) -> None:
        """As messages, a frame's text before its audio."""
        send = self.connection.send
        if isinstance(event, AgentAudio):
            frame = event.frame
            if frame.text:
                await send(messages.Text(index=frame.index, text=frame.text).model_dump_json())
            await send(to_bytes(frame.pcm, self._audio.format))
            await self._report(event)
        elif isinstance(event, Ready):
            await send(self._ready(event).model_dump_json())
        elif isinstance(event, WarningEvent):
            warning = messages.Warning(code=event.code, message=event.message, seconds_left=event.seconds_left)
            await send(warning.model_dump_json(exclude_none=True))
        elif isinstance(event, Ended):
            await send(_ended(event).model_dump_json())
        else:
            assert_never(event)

    async def complain(self, kind: str, message: str) -> None:
        """As an `error` message."""
        await self.connection.send(messages.Error(code=kind, message=message).model_dump_json())

    async def _report(self, spoken: AgentAudio) -> None:
        """Stats, once per second of audio."""
        self._slowest = max(self._slowest, spoken.latency)
        frame_rate = self.runtime.manifest.frame_rate
        if spoken.frame.index and int((spoken.frame.index + 1) / frame_rate) > int(spoken.frame.index / frame_rate):
            stats = messages.Stats(
                index=spoken.frame.index,
                latency_ms=round(1000 * self._slowest, 2),
                dropped_frames=spoken.dropped,
                queued_ms=1000 * spoken.queued / frame_rate,
            )
            self._slowest = 0.0
            await self.connection.send(stats.model_dump_json())

    def _ready(self, ready: Ready) -> messages.Ready:
        manifest = self.runtime.manifest
        return messages.Ready(
            conversation_id=ready.conversation_id,
            voice=ready.voice,
            seed=ready.seed,
            audio=messages.AudioFormat(format=self._audio.format, sample_rate=manifest.sample_rate),
            frame_size=manifest.frame_size,
            setup_ms=round(1000 * ready.setup_seconds, 2),
        )


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
