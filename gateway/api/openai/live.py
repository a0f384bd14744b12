"""WebSocket `/v1/live/sessions`: the OpenAI Live API, turnless and full-duplex, in JSON messages with base64 audio.

The client sends `session.start` when it is ready, then `session.input_audio.append`. The server sends
`session.started`, then a `session.output_audio.delta` per agent frame, preceded by its text, and `session.closed` at
the end. `live_events` has all events. The timeline of a session is the client's audio: without it no time passes.
"""

from __future__ import annotations

import asyncio
import math
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import count
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.connection import Connection
from gateway.api.loop_share import LoopShare
from gateway.api.openai import live_events as events
from gateway.api.openai.errors import INVALID_REQUEST, SERVER_ERROR, OpenAIError, response, translate
from gateway.api.openai.live_config import LiveConfig, resolve
from gateway.audio.squelch import Squelch
from gateway.errors import AudioError, GatewayError, HandshakeTimeout
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason, WarningEvent
from gateway.session.input_queue import InputQueue
from gateway.session.keys import KeyHolder
from gateway.session.limits import LiveLimits
from gateway.session.live import TransportClosed, open_live_session
from gateway.session.request import persona, sampling_params
from gateway.session.runtime import Runtime

PATH = "/v1/live/sessions"

# Clients play what they receive, so audio that is sent ahead of its time delays the user's interruptions. Two frames,
# because clients send pieces of 100 ms.
_LEAD_FRAMES = 2

USAGE_S = 15
"""Seconds of audio between two reports of usage."""

MAX_START_CHARACTERS = 2**18
"""Size limit of `session.start`, so that its echo is well below the 1 MiB that clients read."""

_NORMAL_CLOSURE = 1000


@dataclass(frozen=True, slots=True)
class _End:
    """How the end of a session is reported. `code`: of the error before `session.closed`, None for none."""

    reason: Literal["close_requested", "expired", "connection_lost"]
    close_code: int
    code: str | None = None
    kind: str = SERVER_ERROR


# A client that is refused must not see 1000, which it takes for success. A session that expired was one.
_ENDS = {
    Reason.COMPLETED: _End("close_requested", _NORMAL_CLOSURE),
    Reason.IDLE: _End("expired", _NORMAL_CLOSURE, "session_expired", INVALID_REQUEST),
    Reason.MAX_DURATION: _End("expired", _NORMAL_CLOSURE, "session_expired", INVALID_REQUEST),
    Reason.DRAINED: _End("expired", Reason.DRAINED.close_code, "server_shutting_down"),
    Reason.SLOW_CLIENT: _End("connection_lost", Reason.SLOW_CLIENT.close_code, "slow_client", INVALID_REQUEST),
    Reason.ENGINE: _End("connection_lost", Reason.ENGINE.close_code, "server_error"),
    Reason.ERROR: _End("connection_lost", Reason.ERROR.close_code, "server_error"),
}


def router(runtime: Runtime) -> APIRouter:
    """Make the routes, to be included in an app. What the API has and this server has not is answered with 404."""
    routes = APIRouter()
    routes.add_websocket_route(PATH, LiveEndpoint(runtime), name="live")  # type: ignore[arg-type]
    for path in (PATH, "/v1/live/{rest:path}"):
        routes.add_route(path, _no_route, ["GET", "POST", "DELETE"], include_in_schema=False)
    routes.add_websocket_route("/v1/live/{rest:path}", _no_websocket, name="live-other")  # type: ignore[arg-type]
    return routes


class LiveEndpoint:
    """ASGI application of the route."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. Never raises for what the client does."""
        runtime = self._runtime
        connection = Connection(scope, receive, send, runtime.settings.max_message_bytes)
        with suppress(TransportClosed):
            try:
                key = connection.authenticate(runtime)
            except GatewayError as refusal:
                await connection.deny(response(translate(refusal), refusal.http_status))
                return
            await connection.accept()
            await LiveApiTransport(connection, runtime).serve(key)


class LiveApiTransport:
    """The events of one connection. See `LiveTransport`."""

    def __init__(self, connection: Connection, runtime: Runtime) -> None:
        self._connection = connection
        self._runtime = runtime
        self._manifest = runtime.manifest
        self._frame_ms = round(1000 / runtime.manifest.frame_rate)
        self._event_ids = _event_ids()
        self._share = LoopShare()
        self._start_id: str | None = None
        self._close_id: str | None = None
        self._config: LiveConfig
        self._instructions = ""
        self._session: dict[str, Any] = {}
        self._muted = False
        self._squelch = Squelch(runtime.manifest.sample_rate)
        self._prompt_steps = 0

    async def serve(self, key: KeyHolder | None) -> None:
        """Wait for `session.start`, run the session and close. Raises TransportClosed."""
        connection, runtime = self._connection, self._runtime
        try:
            start = await self._receive_start(runtime.settings.openai_start_seconds)
            if start is None:
                await connection.close(_NORMAL_CLOSURE)
                return
            self._config = config = resolve(start.fields.get("session"), runtime)
            agent, sampling = persona(config.params, runtime), sampling_params(config.params, runtime)
            self._instructions = agent.text
            limits = replace(LiveLimits.of(runtime.settings), lead_frames=_LEAD_FRAMES, early_frames=_LEAD_FRAMES)
            async with open_live_session(runtime, agent, sampling, "wait", key, limits) as session:
                self._codec = config.codec(self._manifest.sample_rate)
                ended = await session.run(self)
        except (OpenAIError, GatewayError) as error:
            refusal = translate(error) if isinstance(error, GatewayError) else error
            await self._send_error(refusal, self._start_id)
            await connection.close(refusal.close_code, refusal.message)
            return
        # The slot is free before the close frame is sent, so that the client may reconnect at once.
        await connection.close(_close_code(ended), ended.message)

    async def receive(self, audio: InputQueue) -> None:
        """Read events until the client disconnects, which raises TransportClosed. Raises GatewayError."""
        while True:
            message = await self._share.wait(self._connection.receive())
            try:
                event = events.parse(message)
                try:
                    await self._handle(event, audio)
                except OpenAIError as error:
                    await self._send_error(error, event.event_id)
            except events.ClientEventError as error:
                await self._send_error(error, error.client_event_id)
            await self._share.pause_if_due()

    async def send(self, event: Event) -> None:
        """Send an event. The text of a frame comes before its audio."""
        if isinstance(event, AgentAudio):
            await self._send_frame(event)
        elif isinstance(event, Ready):
            await self._send_started(event)
        elif isinstance(event, Ended):
            await self._send_end(event)
        else:
            await self._send_warning(event)

    def abort(self) -> None:
        """Close the connection at once, without sending what is queued."""
        self._connection.abort()

    async def _receive_start(self, seconds: float) -> events.ClientEvent | None:
        """Return `session.start`, or None if the client closes the session instead. Audio before it is ignored."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await self._share.wait(self._connection.receive())
                    try:
                        event = events.parse(message)
                        if event.type == events.CLOSE:
                            return None
                        if event.type == events.START:
                            self._start_id = event.event_id
                            _check_size(message)
                            return event
                        if event.type != events.APPEND:
                            error = OpenAIError("session_not_started", f"expected session.start before {event.type}")
                            await self._send_error(error, event.event_id)
                    except events.ClientEventError as error:
                        await self._send_error(error, error.client_event_id)
                    await self._share.pause_if_due()
        except TimeoutError:
            raise HandshakeTimeout(f"no session.start came within {seconds:g} s") from None

    async def _handle(self, event: events.ClientEvent, audio: InputQueue) -> None:
        """Carry out an event of a session that has started, or starts. Raises OpenAIError."""
        if event.type == events.APPEND:
            await self._append(event.fields.get("audio"), audio)
        elif event.type == events.MUTE:
            self._muted = True
            await self._send(events.InputAudioMuted(event_id=next(self._event_ids), client_event_id=event.event_id))
        elif event.type == events.UNMUTE:
            self._muted = False
            await self._send(events.InputAudioUnmuted(event_id=next(self._event_ids), client_event_id=event.event_id))
        elif event.type == events.CLOSE:
            if not audio.closed:
                self._close_id = event.event_id
                await audio.put(self._codec.finish_input())
                audio.close()
        elif event.type == events.START:
            raise OpenAIError("session_already_started", "the session has started; its configuration does not change")
        else:
            raise OpenAIError("unsupported_event", f"{event.type}: {events.UNSUPPORTED[event.type]}", "type")

    async def _append(self, encoded: object, audio: InputQueue) -> None:
        if not isinstance(encoded, str):
            raise OpenAIError("invalid_value", "expected audio in base64", "audio")
        try:
            data = a2b_base64(encoded, strict_mode=True)
        except ValueError as error:
            raise OpenAIError("invalid_value", f"expected audio in base64: {error}", "audio") from None
        codec = self._codec
        for at in range(0, len(data), codec.piece_bytes):
            if audio.closed:
                return
            try:
                pcm = codec.decode(data[at : at + codec.piece_bytes])
            except AudioError as error:
                raise OpenAIError("invalid_value", error.message, "audio") from None
            await audio.put(np.zeros_like(pcm) if self._muted else pcm)
            await self._share.pause_if_due()

    async def _send_frame(self, event: AgentAudio) -> None:
        frame = event.frame
        if frame.text:
            start_ms = frame.index * self._frame_ms
            await self._send(
                events.OutputTranscriptDelta(
                    event_id=next(self._event_ids),
                    delta=frame.text,
                    start_ms=start_ms,
                    end_ms=start_ms + self._frame_ms,
                )
            )
        await self._send_audio(self._codec.encode(self._squelch.apply(frame.pcm, frame.text)))
        frames, frame_rate = frame.index + 1, self._manifest.frame_rate
        if int(frames / (USAGE_S * frame_rate)) > int(frame.index / (USAGE_S * frame_rate)):
            await self._send_usage(frames)

    async def _send_audio(self, data: bytes) -> None:
        if data:
            delta = b2a_base64(data, newline=False).decode("ascii")
            await self._connection.send(events.OutputAudioDelta(delta=delta).model_dump_json())

    async def _send_started(self, ready: Ready) -> None:
        self._prompt_steps = ready.prompt_steps
        self._session = {
            "id": f"live_{ready.conversation_id}",
            "status": "active",
            "expires_at": int(time.time() + self._runtime.settings.max_call_seconds),
            "instructions": self._instructions,
            **self._config.echo,
        }
        await self._send(
            events.SessionStarted(event_id=next(self._event_ids), client_event_id=self._start_id, session=self._session)
        )
        for notice in self._config.notices:
            await self._send_info(notice.code, notice.message)

    async def _send_end(self, ended: Ended) -> None:
        """Send the rest of the audio, the error if there is one, and, if the session had started, `session.closed`."""
        end = _ENDS.get(ended.reason)
        client_event_id = None if self._session else self._start_id
        if ended.error is not None:
            await self._send_error(translate(ended.error), client_event_id)
        elif end is not None and end.code is not None:
            await self._send_error(OpenAIError(end.code, ended.message, kind=end.kind), client_event_id)
        if not self._session:
            return
        if ended.reason is Reason.COMPLETED:
            await self._send_audio(self._codec.finish_output())
        await self._send_usage(ended.summary.frames)
        await self._send(
            events.SessionClosed(
                event_id=next(self._event_ids),
                client_event_id=self._close_id,
                reason=end.reason if end else "connection_lost",
                session=self._session,
                usage=_usage(ended.summary.frames, self._manifest.frame_rate),
            )
        )

    async def _send_usage(self, frames: int) -> None:
        ratio = min(1.0, (self._prompt_steps + frames) / self._manifest.context)
        await self._send(
            events.SessionUsageUpdated(
                event_id=next(self._event_ids),
                usage=_usage(frames, self._manifest.frame_rate),
                context_window=events.ContextWindow(usage_ratio=round(ratio, 6)),
            )
        )

    async def _send_warning(self, event: WarningEvent) -> None:
        await self._send_info(event.code, event.message)

    async def _send_info(self, code: str, message: str) -> None:
        await self._send(events.Info(event_id=next(self._event_ids), code=code, message=message))

    async def _send_error(self, error: OpenAIError, client_event_id: str | None) -> None:
        details = events.ErrorDetails(
            type=error.kind,
            code=error.code,
            message=error.message,
            param=error.param,
            client_event_id=client_event_id,
        )
        await self._send(events.Error(event_id=next(self._event_ids), error=details))

    async def _send(self, event: events.ServerEvent) -> None:
        await self._connection.send(event.model_dump_json(exclude_none=True))


def _check_size(message: str | bytes) -> None:
    if len(message) > MAX_START_CHARACTERS:
        raise OpenAIError("invalid_value", f"expected at most {MAX_START_CHARACTERS} characters", "session")


def _usage(frames: int, frame_rate: float) -> events.Usage:
    return events.Usage(seconds=math.ceil(frames / frame_rate))


def _close_code(ended: Ended) -> int:
    if (end := _ENDS.get(ended.reason)) is not None:
        return end.close_code
    return ended.error.close_code if ended.error is not None else ended.reason.close_code


def _event_ids() -> Iterator[str]:
    """Yield ids that no other connection has."""
    prefix = uuid4().hex[:16]
    return (f"event_{prefix}_{number}" for number in count())


def _not_found(path: str) -> Response:
    message = f"{path}: this server has {PATH} only, as a WebSocket"
    return response(OpenAIError("not_found", message), HTTPStatus.NOT_FOUND)


async def _no_route(request: Request) -> Response:
    return _not_found(request.url.path)


class _NoWebSocket:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(TransportClosed):
            await Connection(scope, receive, send, 0).deny(_not_found(scope["path"]))


_no_websocket = _NoWebSocket()
