"""WebSocket `/v1/live/sessions`: the OpenAI Live API, turnless and full-duplex, in JSON messages with base64 audio.

The client sends `session.start` when it is ready, then `session.input_audio.append`. The server sends
`session.started`, then a `session.output_audio.delta` per agent frame, preceded by its text, and `session.closed` at
the end. `live_events` has all events. The timeline of a session is the client's audio: without it no time passes.
"""

from __future__ import annotations

import asyncio
import math
import time
from binascii import b2a_base64
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter

from gateway.api.connection import Connection
from gateway.api.openai import endpoint
from gateway.api.openai import live_events as events
from gateway.api.openai.channel import EventChannel, decode_base64
from gateway.api.openai.client_events import ClientEvent
from gateway.api.openai.config import check_size, live_limits
from gateway.api.openai.errors import NORMAL_CLOSURE, OpenAIError, end_error, translate
from gateway.api.openai.live_config import LiveConfig, resolve
from gateway.audio.squelch import Squelch
from gateway.errors import GatewayError, HandshakeTimeout
from gateway.session.admission import Slot
from gateway.session.caller import Caller
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason, WarningEvent
from gateway.session.input_queue import InputQueue
from gateway.session.live import LiveSession
from gateway.session.request import persona, sampling_params
from gateway.session.runtime import Runtime
from gateway.telemetry.metrics import Api

PATH = "/v1/live/sessions"

USAGE_S = 15
"""Seconds of audio between two reports of usage."""

MAX_COMMENTARY_TOKENS = 500
MAX_COMMENTARY_CHARACTERS = 4_000
"""Limits of OpenAI's API, and of the time that a text takes to be encoded."""

_REASONS: dict[Reason, Literal["close_requested", "expired"]] = {
    Reason.COMPLETED: "close_requested",
    Reason.IDLE: "expired",
    Reason.MAX_DURATION: "expired",
    Reason.DRAINED: "expired",
}
"""What `session.closed` states; `connection_lost` for all others."""


def router(runtime: Runtime) -> APIRouter:
    """Make the routes, to be included in an app. What the API has and this server has not is answered with 404."""
    return endpoint.router(runtime, endpoint.OpenAIApi(Api.LIVE, PATH, "/v1/live", _serve))


async def _serve(connection: Connection, runtime: Runtime, caller: Caller, slot: Slot | None) -> None:
    await LiveApiTransport(connection, runtime).serve(caller, slot)


@dataclass(slots=True)
class _State:
    """What a session keeps when it is resumed over another connection. `session`: as stated by `session.started`."""

    config: LiveConfig
    instructions: str
    session: dict[str, Any] = field(default_factory=dict)
    prompt_steps: int = 0
    muted: bool = False


class LiveApiTransport:
    """The events of one connection. See `LiveTransport`."""

    def __init__(self, connection: Connection, runtime: Runtime) -> None:
        self._connection = connection
        self._runtime = runtime
        self._manifest = runtime.manifest
        self._frame_ms = round(1000 / runtime.manifest.frame_rate)
        self._channel = EventChannel(connection, events.CLIENT_EVENTS, events.error_event)
        self._start_id: str | None = None
        self._close_id: str | None = None
        self._live: LiveSession
        self._state: _State
        self._started = False
        self._squelch = Squelch(runtime.manifest.sample_rate)

    async def serve(self, caller: Caller, slot: Slot | None) -> None:
        """Wait for `session.start`, or resume a session; run it and close. Raises TransportClosed."""
        connection, runtime = self._connection, self._runtime
        try:
            if (resumed := runtime.live_sessions.find(connection.resume_token, caller)) is not None:
                ended = await self._run(resumed, resumed.memo)
            else:
                start = await self._receive_start(runtime.settings.openai_start_seconds)
                if start is None:
                    await connection.close(NORMAL_CLOSURE)
                    return
                config = resolve(start.fields.get("session"), runtime)
                agent, sampling = persona(config.params, runtime), sampling_params(config.params, runtime)
                limits, token = live_limits(runtime), connection.resume_token
                opened = runtime.live_sessions.open(agent, sampling, caller, "wait", limits, slot, token)
                async with opened as session:
                    session.memo = _State(config, agent.text)
                    ended = await self._run(session, session.memo)
        except (OpenAIError, GatewayError) as error:
            if slot is not None:
                slot.cancel()
            refusal = translate(error) if isinstance(error, GatewayError) else error
            await self._channel.send_error(refusal, self._start_id)
            await connection.close(refusal.close_code, refusal.message)
            return
        # The slot is free before the close frame is sent, so that the client may reconnect at once.
        reported = end_error(ended)
        await connection.close(reported.close_code if reported else NORMAL_CLOSURE, ended.message)

    async def _run(self, session: LiveSession, state: _State) -> Ended:
        self._live, self._state = session, state
        self._codec = state.config.codec(self._manifest.sample_rate)
        return await session.run(self)

    async def receive(self, audio: InputQueue) -> None:
        """Read events until the client disconnects, which raises TransportClosed. Raises GatewayError."""
        while True:
            event = await self._channel.receive()
            try:
                await self._handle(event, audio)
            except OpenAIError as error:
                await self._channel.send_error(error, event.event_id)

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

    async def _receive_start(self, seconds: float) -> ClientEvent | None:
        """Return `session.start`, or None if the client closes the session instead. Audio before it is ignored."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    event = await self._channel.receive()
                    if event.type == events.CLOSE:
                        return None
                    if event.type == events.START:
                        self._start_id = event.event_id
                        check_size(event.size)
                        return event
                    if event.type != events.APPEND:
                        error = OpenAIError("session_not_started", f"expected session.start before {event.type}")
                        await self._channel.send_error(error, event.event_id)
        except TimeoutError:
            raise HandshakeTimeout(f"no session.start came within {seconds:g} s") from None

    async def _handle(self, event: ClientEvent, audio: InputQueue) -> None:
        """Carry out an event of a session that has started, or starts. Raises OpenAIError."""
        channel = self._channel
        if event.type == events.APPEND:
            await self._append(event.fields.get("audio"), audio)
        elif event.type == events.MUTE:
            self._state.muted = True
            await channel.send(events.InputAudioMuted(event_id=channel.new_id(), client_event_id=event.event_id))
        elif event.type == events.UNMUTE:
            self._state.muted = False
            await channel.send(events.InputAudioUnmuted(event_id=channel.new_id(), client_event_id=event.event_id))
        elif event.type == events.CLOSE:
            if not audio.closed:
                self._close_id = event.event_id
                await audio.put(self._codec.finish_input())
                audio.close()
        elif event.type == events.COMMENTARY and self._runtime.settings.forced_speech:
            await self._say(event)
        elif event.type == events.START:
            raise OpenAIError("session_already_started", "the session has started; its configuration does not change")
        else:
            raise OpenAIError("unsupported_event", f"{event.type}: {events.UNSUPPORTED[event.type]}", "type")

    async def _say(self, event: ClientEvent) -> None:
        content, delegation = event.fields.get("content"), event.fields.get("delegation_id")
        if not isinstance(content, str) or not content.strip() or len(content) > MAX_COMMENTARY_CHARACTERS:
            expected = f"expected text of 1 to {MAX_COMMENTARY_CHARACTERS} characters"
            raise OpenAIError("invalid_value", expected, "content")
        if delegation is not None:
            raise OpenAIError("invalid_value", "expected null: this server delegates no tasks", "delegation_id")
        if not self._started:
            raise OpenAIError("session_not_started", f"expected {event.type} after session.started")
        words = self._runtime.tokenizer.encode_words(content)
        if sum(map(len, words)) > MAX_COMMENTARY_TOKENS:
            raise OpenAIError("invalid_value", f"expected at most {MAX_COMMENTARY_TOKENS} tokens", "content")
        self._live.say(words)
        at = self._live.frames * self._frame_ms
        appended = events.CommentaryAppended(
            event_id=self._channel.new_id(), client_event_id=event.event_id, start_ms=at, end_ms=at
        )
        await self._channel.send(appended)

    async def _append(self, encoded: object, audio: InputQueue) -> None:
        if audio.closed:
            return
        async for pcm in self._channel.decode(decode_base64(encoded), self._codec):
            await audio.put(np.zeros_like(pcm) if self._state.muted else pcm)

    async def _send_frame(self, event: AgentAudio) -> None:
        frame = event.frame
        await self._send_text(frame.text, frame.index, frame.index + 1)
        await self._send_audio(self._codec.encode(self._squelch.apply(frame.pcm, frame.text)))
        frames, frame_rate = frame.index + 1, self._manifest.frame_rate
        if int(frames / (USAGE_S * frame_rate)) > int(frame.index / (USAGE_S * frame_rate)):
            await self._send_usage(frames)

    async def _send_text(self, text: str, first: int, end: int) -> None:
        """Send the text of the agent frames from `first` to before `end`."""
        if text:
            delta = events.OutputTranscriptDelta(
                event_id=self._channel.new_id(),
                delta=text,
                start_ms=first * self._frame_ms,
                end_ms=end * self._frame_ms,
            )
            await self._channel.send(delta)

    async def _send_audio(self, data: bytes) -> None:
        if data:
            delta = b2a_base64(data, newline=False).decode("ascii")
            await self._channel.send(events.OutputAudioDelta(delta=delta))

    async def _send_started(self, ready: Ready) -> None:
        state = self._state
        begins = not state.session
        if begins:
            state.prompt_steps = ready.prompt_steps
            state.session = {
                "id": f"live_{ready.conversation_id}",
                "status": "active",
                "expires_at": int(time.time() + self._runtime.settings.max_call_seconds),
                "instructions": state.instructions,
                **state.config.echo,
            }
        self._started = True
        await self._channel.send(
            events.SessionStarted(
                event_id=self._channel.new_id(), client_event_id=self._start_id, session=state.session
            )
        )
        if begins:
            for notice in state.config.notices:
                await self._send_info(notice.code, notice.message)
        if ready.resume is not None:
            # The API's `session` has no field for it.
            await self._send_info("resume_token", ready.resume.token)
        await self._send_text(ready.missed_text, ready.missed_from, ready.index)

    async def _send_end(self, ended: Ended) -> None:
        """Send the rest of the audio, the error if there is one, and, if the session had started, `session.closed`."""
        if (error := end_error(ended)) is not None:
            await self._channel.send_error(error, None if self._started else self._start_id)
        if not self._started:
            return
        if ended.reason is Reason.COMPLETED:
            await self._send_audio(self._codec.finish_output())
        await self._send_usage(ended.summary.frames)
        await self._channel.send(
            events.SessionClosed(
                event_id=self._channel.new_id(),
                client_event_id=self._close_id,
                reason=_REASONS.get(ended.reason, "connection_lost"),
                session=self._state.session,
                usage=_usage(ended.summary.frames, self._manifest.frame_rate),
            )
        )

    async def _send_usage(self, frames: int) -> None:
        ratio = min(1.0, (self._state.prompt_steps + frames) / self._manifest.context)
        await self._channel.send(
            events.SessionUsageUpdated(
                event_id=self._channel.new_id(),
                usage=_usage(frames, self._manifest.frame_rate),
                context_window=events.ContextWindow(usage_ratio=round(ratio, 6)),
            )
        )

    async def _send_warning(self, event: WarningEvent) -> None:
        await self._send_info(event.code, event.message)

    async def _send_info(self, code: str, message: str) -> None:
        await self._channel.send(events.Info(event_id=self._channel.new_id(), code=code, message=message))


def _usage(frames: int, frame_rate: float) -> events.Usage:
    return events.Usage(seconds=math.ceil(frames / frame_rate))
