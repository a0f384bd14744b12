"""Converse: a live call over gRPC, its audio in both directions at once.

The handler itself writes; one task beside it reads, so that gRPC's flow control holds back a caller whose audio finds
no room; and one waits for the end, to free a handler that is stuck in a write nobody takes. Nothing else is started
per call, and nothing per frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import grpc

from gateway.api.grpc.audio import CallAudio, chosen_audio
from gateway.api.grpc.params import live_params, require
from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.status import Code, Metadata, metadata_of
from gateway.errors import GatewayError, HandshakeTimeout, InvalidRequest, MalformedBody, PayloadTooLarge
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason
from gateway.session.keys import KeyHolder
from gateway.session.live import LiveSession, open_live_session
from gateway.session.request import persona, sampling
from gateway.session.runtime import Runtime

logger = logging.getLogger(__name__)

# What an end takes that somebody reads: the frames that wait, and the last message.
_LAST_WORDS_S = 1.0
# A cancelled call looks like the end of the caller's messages for a moment, before its cancellation is told.
_CANCELLATION_S = 0.02


async def converse(runtime: Runtime, context: grpc.aio.ServicerContext, key: KeyHolder | None) -> None:
    """One call, from its first message to its status.

    Raises GatewayError for what is refused before the call begins; what ends it later is told by `Ended` and the
    status.
    """
    start = await _first_message(context, runtime.settings.handshake_seconds)
    params = live_params(start)
    audio = chosen_audio(start, runtime.manifest.sample_rate)
    who, drawn = persona(params, runtime), sampling(params, runtime)
    async with open_live_session(runtime, who, drawn, params.on_gap or "wait", key) as live:
        ear = _Reader(context, live, audio, runtime.settings.max_message_bytes)
        mouth = _Writer(context, live, audio, runtime, with_tokens=start.include_tokens)
        async with _beside(ear.listen()):
            ended = await mouth.speak()
    await _tell_status(context, ended, ear.fault, runtime.settings.retry_after)


async def _first_message(context: grpc.aio.ServicerContext, seconds: float) -> pb.Start:
    try:
        async with asyncio.timeout(seconds):
            message = await context.read()
    except TimeoutError:
        raise HandshakeTimeout(f"expected start within {seconds:g} s, got nothing") from None
    if message is grpc.aio.EOF:
        raise InvalidRequest("expected start as the first message, got the end", "start")
    kind = require(message, "ConverseRequest").WhichOneof("message")
    if kind != "start":
        raise InvalidRequest(f"expected start as the first message, got {kind or 'an empty one'}", "start")
    start: pb.Start = message.start
    return start


class _Reader:
    """Reads what the caller sends into the call. `fault`: what was wrong with it, if that ended the call."""

    def __init__(self, context: grpc.aio.ServicerContext, live: LiveSession, audio: CallAudio, limit: int) -> None:
        self._context = context
        self._live = live
        self._audio = audio
        self._limit = limit
        self.fault: GatewayError | None = None

    async def listen(self) -> None:
        """Until the caller is done; errors end the call."""
        try:
            await self._listen()
        except GatewayError as error:
            self.fault = error
            self._live.stop(Reason(error.end_reason), error.message)
        except Exception:
            logger.exception("conversation %s cannot be heard any more", self._live.id)
            self._live.stop(Reason.ERROR, "internal error")

    async def _listen(self) -> None:
        context, live, audio = self._context, self._live, self._audio
        while (message := await context.read()) is not grpc.aio.EOF:
            if message is None:
                raise MalformedBody("expected a personaplex.v1.ConverseRequest, got bytes that are none")
            kind = message.WhichOneof("message")
            if kind == "audio":
                data = message.audio
                if len(data) > self._limit:
                    raise PayloadTooLarge(f"expected at most {self._limit} bytes of audio at once, got {len(data)}")
                await live.put(audio.read(data))
            elif kind == "end":
                break
            else:
                raise InvalidRequest(f"expected audio or end, got {kind or 'an empty message'}", kind)
        else:
            await asyncio.sleep(_CANCELLATION_S)
        await live.put(audio.finish())
        live.hang_up()


class _Writer:
    """Writes what happens in the call to the caller."""

    def __init__(
        self,
        context: grpc.aio.ServicerContext,
        live: LiveSession,
        audio: CallAudio,
        runtime: Runtime,
        *,
        with_tokens: bool,
    ) -> None:
        self._context = context
        self._live = live
        self._audio = audio
        self._manifest = runtime.manifest
        self._with_tokens = with_tokens
        # About once a second.
        self._stats_every = round(runtime.manifest.frame_rate)
        self._frame_ms = 1000 / runtime.manifest.frame_rate
        self._slowest = 0.0

    async def speak(self) -> Ended:
        """Until the call has ended and the caller knows, or does not take it."""
        write = self._context.write
        ended = None
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(None) as limit,
                _beside(self._limit_last_words(limit)),
                aclosing(self._live.events()) as events,
            ):
                async for event in events:
                    if isinstance(event, Ended):
                        ended = event
                    await write(self._message(event))
                    if isinstance(event, AgentAudio):
                        self._slowest = max(self._slowest, event.latency)
                        if event.frame.index % self._stats_every == 1:
                            await write(self._stats(event))
        return ended or await self._last_of(self._live)

    async def _limit_last_words(self, limit: asyncio.Timeout) -> None:
        await self._live.over.wait()
        limit.reschedule(asyncio.get_running_loop().time() + _LAST_WORDS_S)

    async def _last_of(self, live: LiveSession) -> Ended:
        return [event async for event in live.events()][-1]  # type: ignore[return-value]

    def _message(self, event: Event) -> pb.ConverseResponse:
        if isinstance(event, AgentAudio):
            return pb.ConverseResponse(audio=self._spoken(event))
        if isinstance(event, Ready):
            return pb.ConverseResponse(ready=self._ready(event))
        if isinstance(event, Ended):
            return pb.ConverseResponse(ended=_ended(event))
        return pb.ConverseResponse(
            warning=pb.Warning(code=event.code, message=event.message, seconds_left=event.seconds_left)
        )

    def _spoken(self, event: AgentAudio) -> pb.Audio:
        frame = event.frame
        message = pb.Audio(index=frame.index, data=self._audio.write(frame.pcm), text=frame.text)
        if self._with_tokens:
            message.text_token = frame.text_token
            message.agent_codes.extend(frame.codes.tolist())
        return message

    def _ready(self, event: Ready) -> pb.Ready:
        return pb.Ready(
            conversation_id=event.conversation_id,
            voice=event.voice,
            seed=event.seed,
            format=self._audio.kind,
            sample_rate=self._manifest.sample_rate,
            frame_size=self._manifest.frame_size,
            setup_ms=event.setup_seconds * 1000,
        )

    def _stats(self, event: AgentAudio) -> pb.ConverseResponse:
        stats = pb.Stats(
            index=event.frame.index,
            latency_ms=self._slowest * 1000,
            dropped_frames=event.dropped,
            queued_ms=event.queued * self._frame_ms,
        )
        self._slowest = 0.0
        return pb.ConverseResponse(stats=stats)


@asynccontextmanager
async def _beside(work: object) -> AsyncIterator[None]:
    """Runs a coroutine beside what is inside, and no longer."""
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _ended(event: Ended) -> pb.Ended:
    summary = event.summary
    return pb.Ended(
        reason=pb.EndReason.Value(f"END_REASON_{event.reason.name}"),
        message=event.message,
        frames=summary.frames,
        seconds=summary.seconds,
        transcript=summary.transcript,
        dropped_frames=summary.dropped_frames,
        late_frames=summary.late_frames,
    )


async def _tell_status(
    context: grpc.aio.ServicerContext, ended: Ended, fault: GatewayError | None, retry_after: int
) -> None:
    """After `ended`: why, for callers who look at the status alone."""
    if ended.reason is Reason.COMPLETED:
        return
    metadata: Metadata = (("personaplex-reason", ended.reason.value),)
    if fault is not None and ended.reason == fault.end_reason:
        status = Code[fault.grpc_status]
        await context.abort(status, ended.message, (*metadata, *metadata_of(fault, retry_after)))
    code = Code[ended.reason.grpc_status]
    if code is Code.UNAVAILABLE:
        metadata = (*metadata, ("retry-after", str(retry_after)))
    await context.abort(code, ended.message, metadata)
