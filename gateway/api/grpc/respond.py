"""gRPC `Respond` and `RespondStream`: respond to a recording, complete or frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict

import grpc

from gateway.api.grpc.params import require, respond_request
from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.status import accept
from gateway.audio.wav import pcm16
from gateway.errors import InvalidRequest, MalformedBody, UploadTimeout
from gateway.session.admission import Upload
from gateway.session.caller import Caller
from gateway.session.recorded import frame_limit
from gateway.session.recorded_run import RecordedResult, open_recorded_run, run_recorded
from gateway.session.request import RecordedRequest, prepare
from gateway.session.runtime import Runtime
from gateway.session.stats import SessionStats


async def respond(runtime: Runtime, context: grpc.aio.ServicerContext, caller: Caller) -> pb.RespondResponse:
    """Respond to a recording in one message. Raises GatewayError."""
    with runtime.admission.upload(caller, 0) as upload:
        request = await _receive(runtime, context, caller, upload)
        _check_response_fits(request, runtime)
        result = await run_recorded(request, runtime)
    return await asyncio.to_thread(_response, result)


async def respond_stream(
    runtime: Runtime, context: grpc.aio.ServicerContext, caller: Caller
) -> AsyncGenerator[pb.RespondChunk, None]:
    """Yield a header after the prefill, the frames as they are generated, and a summary. Raises GatewayError."""
    with runtime.admission.upload(caller, 0) as upload:
        request = await _receive(runtime, context, caller, upload)
        async with aclosing(_chunks(runtime, request)) as chunks:
            async for chunk in chunks:
                if chunk.HasField("header"):
                    await accept(context)
                yield chunk


async def _receive(
    runtime: Runtime, context: grpc.aio.ServicerContext, caller: Caller, upload: Upload
) -> RecordedRequest:
    """Read the one message of an admitted request.

    gRPC does not report a message's length in advance: the maximum is reserved until the message has arrived.
    """
    settings = runtime.settings
    upload.reserve(min(settings.grpc_message_bytes, settings.upload_budget_bytes))
    try:
        async with asyncio.timeout(settings.upload_seconds):
            message = await context.read()
    except TimeoutError:
        raise UploadTimeout(f"the request did not arrive within {settings.upload_seconds:g} s") from None
    if message is grpc.aio.EOF:
        raise MalformedBody("expected a personaplex.v1.RespondRequest, got the end")
    params = respond_request(require(message, "RespondRequest"))
    upload.shrink(message.ByteSize())
    del message
    return await prepare(params, runtime, caller, upload)


def _check_response_fits(request: RecordedRequest, runtime: Runtime) -> None:
    """Raise InvalidRequest if the response may exceed a message: sending a larger one would stall all sessions."""
    limit = runtime.settings.grpc_message_bytes
    frames = frame_limit(request.pcm, runtime.manifest, request.max_steps, runtime.settings.max_steps)
    if frames * runtime.manifest.frame_size * 2 > limit:
        raise InvalidRequest(
            f"a response of {frames} frames may exceed {limit} bytes; use RespondStream, or fewer max_steps",
            "max_steps",
        )


async def _chunks(runtime: Runtime, request: RecordedRequest) -> AsyncGenerator[pb.RespondChunk, None]:
    count, texts = 0, []
    async with open_recorded_run(request, runtime) as run:
        async for frame in run.frames():
            if count == 0:
                yield pb.RespondChunk(header=_header(request, runtime))
            audio = pb.Audio(index=count, data=pcm16(frame.pcm), text=frame.text)
            if request.with_tokens:
                audio.text_token = frame.text_token
                audio.agent_codes.extend(frame.codes.tolist())
            count += 1
            texts.append(frame.text)
            yield pb.RespondChunk(audio=audio)
    yield pb.RespondChunk(
        summary=pb.RespondSummary(
            transcript="".join(texts).strip(),
            frames=count,
            timings=_timings(run.stats),
            user_codes=run.user_codes.ravel() if request.with_tokens else None,
        )
    )


def _header(request: RecordedRequest, runtime: Runtime) -> pb.RespondHeader:
    return pb.RespondHeader(
        voice=request.voice,
        seed=request.sampling.seed,
        format=pb.AUDIO_FORMAT_PCM_S16LE,
        sample_rate=runtime.manifest.sample_rate,
        frame_size=runtime.manifest.frame_size,
    )


def _response(result: RecordedResult) -> pb.RespondResponse:
    with_tokens = result.request.with_tokens
    return pb.RespondResponse(
        audio=result.wav(),
        transcript=result.transcript,
        frames=result.frames,
        sample_rate=result.sample_rate,
        voice=result.request.voice,
        seed=result.request.sampling.seed,
        timings=_timings(result.stats),
        text_tokens=result.text_tokens if with_tokens else None,
        agent_codes=result.agent_codes.ravel() if with_tokens else None,
        user_codes=result.user_codes.ravel() if with_tokens else None,
    )


def _timings(stats: SessionStats) -> pb.Timings:
    stages = {name: pb.StageTimings(**asdict(of)) for name, of in stats.stages().items()}
    return pb.Timings(
        setup_ms=stats.setup_seconds * 1000,
        time_to_first_audio_ms=stats.first_audio_seconds * 1000,
        rtf=stats.rtf,
        **stages,
    )
