"""gRPC `Converse`: a live session in protobuf messages."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from gateway.api.connection import RESUME_HEADER
from gateway.api.grpc.audio import AudioCodec, choose_codec
from gateway.api.grpc.params import live_params
from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.status import Code, Metadata, accept, metadata_of, request_metadata
from gateway.audio.stream import FROM_INT16, PCM_PIECE_BYTES
from gateway.errors import HandshakeTimeout, InvalidRequest, MalformedBody, PayloadTooLarge
from gateway.session.caller import Caller
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason
from gateway.session.input_queue import InputQueue
from gateway.session.live import TransportClosed
from gateway.session.request import run_live_session
from gateway.session.runtime import Runtime

# A cancelled RPC looks like the end of the client's messages for a moment, until gRPC cancels the handler.
_CANCELLATION_S = 0.02
_MALFORMED = "expected a personaplex.v1.ConverseRequest, got bytes that are none"


async def converse(runtime: Runtime, context: grpc.aio.ServicerContext, caller: Caller) -> None:
    """Serve one RPC whose messages gRPC passes on as bytes, from `start` to the status.

    A slot is reserved before `start` is read, so that a full server answers at once, before the initial metadata: gRPC
    clients then retry on another server.

    Raises GatewayError for what is refused before the session begins. `Ended` and the status report a later end.
    """
    token = _resume_token(context)
    resumed = runtime.live_sessions.find(token, caller)
    # A session that is resumed has a slot.
    with nullcontext() if resumed is not None else runtime.admission.reserve(caller) as slot:
        start = await _receive_start(context, runtime.settings.handshake_seconds)
        params = live_params(start)
        new_codec = choose_codec(start, runtime.manifest.sample_rate)
        transport = ConverseTransport(context, new_codec(), runtime, include_tokens=start.include_tokens)
        ended = await run_live_session(transport, params, runtime, caller, slot=slot, token=token)
    await _send_status(context, ended, runtime.settings.retry_after)


def _resume_token(context: grpc.aio.ServicerContext) -> str | None:
    return next((str(value) for name, value in context.invocation_metadata() or () if name == RESUME_HEADER), None)


async def _receive_start(context: grpc.aio.ServicerContext, seconds: float) -> pb.Start:
    try:
        async with asyncio.timeout(seconds):
            data = await context.read()
    except TimeoutError:
        raise HandshakeTimeout(f"expected start within {seconds:g} s, got nothing") from None
    if data is grpc.aio.EOF:
        raise InvalidRequest("expected start as the first message, got the end", "start")
    try:
        message = pb.ConverseRequest.FromString(data)
    except DecodeError:
        raise MalformedBody(_MALFORMED) from None
    kind = message.WhichOneof("message")
    if kind != "start":
        raise InvalidRequest(f"expected start as the first message, got {kind or 'an empty one'}", "start")
    start: pb.Start = message.start
    return start


class ConverseTransport:
    """The messages of one RPC. See `LiveTransport`."""

    def __init__(
        self, context: grpc.aio.ServicerContext, codec: AudioCodec, runtime: Runtime, *, include_tokens: bool
    ) -> None:
        self._context = context
        self._codec = codec
        self._manifest = runtime.manifest
        self._include_tokens = include_tokens
        self._max_message_bytes = runtime.settings.max_message_bytes
        # About once a second.
        self._stats_every = round(runtime.manifest.frame_rate)
        self._max_latency = 0.0

    async def receive(self, audio: InputQueue) -> None:
        """Read messages until `end` or the end of the client's stream."""
        read, parse, decode = self._context.read, pb.ConverseRequest.FromString, self._codec.decode
        plain_int16 = self._codec.plain_int16
        while (data := await read()) is not grpc.aio.EOF:
            try:
                message = parse(data)
            except DecodeError:
                raise MalformedBody(_MALFORMED) from None
            kind = message.WhichOneof("message")
            if kind == "audio":
                encoded = message.audio
                if len(encoded) > self._max_message_bytes:
                    raise PayloadTooLarge(
                        f"expected at most {self._max_message_bytes} bytes of audio at once, got {len(encoded)}"
                    )
                if len(encoded) <= PCM_PIECE_BYTES:
                    if plain_int16 and not len(encoded) % 2:
                        # The same as `PcmReader.read`, without a call per frame.
                        await audio.put(np.frombuffer(encoded, np.int16) * FROM_INT16)
                    else:
                        await audio.put(decode(encoded))
                    continue
                for at in range(0, len(encoded), PCM_PIECE_BYTES):
                    if audio.closed:
                        break
                    await audio.put(decode(encoded[at : at + PCM_PIECE_BYTES]))
            elif kind == "end":
                break
            else:
                raise InvalidRequest(f"expected audio or end, got {kind or 'an empty message'}", kind)
        else:
            await asyncio.sleep(_CANCELLATION_S)
        await audio.put(self._codec.finish())
        audio.close()

    async def send(self, event: Event) -> None:
        """Write an event, and about once a second `stats`."""
        write = self._context.write
        try:
            if type(event) is not AgentAudio:
                if isinstance(event, Ready):
                    await accept(self._context)
                await write(self._message(event).SerializeToString())
                return
            frame, encoding = event.frame, self._codec.encoding
            if encoding is not None:
                # The same as `audio.stream.to_bytes`, without a call per frame.
                scaled = np.minimum(np.maximum(frame.pcm * encoding.scale, -encoding.limit), encoding.limit)
                data = scaled.astype(encoding.dtype).tobytes()
            else:
                data = self._codec.encode(frame.pcm)
            response = pb.ConverseResponse()
            audio = response.audio
            audio.index, audio.data, audio.text = frame.index, data, frame.text
            if self._include_tokens:
                audio.text_token = frame.text_token
                audio.agent_codes.extend(frame.codes.tolist())
            await write(response.SerializeToString())
            if event.latency > self._max_latency:
                self._max_latency = event.latency
            if frame.index % self._stats_every == 1:
                await write(self._stats(event).SerializeToString())
        except (grpc.aio.BaseError, grpc.aio.UsageError) as error:
            raise TransportClosed from error

    def abort(self) -> None:
        """Do nothing: the status of the RPC discards unsent messages."""

    def _message(self, event: Event) -> pb.ConverseResponse:
        if isinstance(event, Ready):
            return pb.ConverseResponse(
                ready=pb.Ready(
                    conversation_id=event.conversation_id,
                    voice=event.voice,
                    seed=event.seed,
                    format=self._codec.wire_format,
                    sample_rate=self._manifest.sample_rate,
                    frame_size=self._manifest.frame_size,
                    setup_ms=event.setup_seconds * 1000,
                    resume=_resume(event),
                    index=event.index,
                    missed_text=event.missed_text,
                )
            )
        if isinstance(event, Ended):
            summary = event.summary
            return pb.ConverseResponse(
                ended=pb.Ended(
                    reason=pb.EndReason.Value(f"END_REASON_{event.reason.name}"),
                    message=event.message,
                    frames=summary.frames,
                    seconds=summary.seconds,
                    transcript=summary.transcript,
                    dropped_frames=summary.dropped_frames,
                    late_frames=summary.late_frames,
                )
            )
        assert not isinstance(event, AgentAudio)  # noqa: S101 (`send` handles it)
        return pb.ConverseResponse(
            warning=pb.Warning(code=event.code, message=event.message, seconds_left=event.seconds_left)
        )

    def _stats(self, event: AgentAudio) -> pb.ConverseResponse:
        stats = pb.Stats(
            index=event.frame.index,
            latency_ms=self._max_latency * 1000,
            dropped_frames=event.dropped,
            queued_ms=event.queued * 1000 / self._manifest.frame_rate,
        )
        self._max_latency = 0.0
        return pb.ConverseResponse(stats=stats)


def _resume(ready: Ready) -> pb.Resume | None:
    return None if ready.resume is None else pb.Resume(token=ready.resume.token, seconds=ready.resume.seconds)


async def _send_status(context: grpc.aio.ServicerContext, ended: Ended, retry_after: int) -> None:
    """Send the status of a session that did not complete, for clients that look at nothing else."""
    if ended.reason in (Reason.COMPLETED, Reason.DISCONNECTED):
        return
    metadata: Metadata = (("personaplex-reason", ended.reason.value), *request_metadata())
    if ended.error is not None and ended.reason is Reason.CLIENT_ERROR:
        status = Code[ended.error.grpc_status]
        metadata = (metadata[0], *metadata_of(ended.error, retry_after))
    else:
        status = Code[ended.reason.grpc_status]
        if status is Code.UNAVAILABLE:
            metadata = (*metadata, ("retry-after", str(retry_after)))
    await context.abort(status, ended.message, metadata)
