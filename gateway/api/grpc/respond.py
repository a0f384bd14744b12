"""Respond and RespondStream: the operation of `POST /v1/respond` over gRPC, whole or frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict

import grpc

from gateway.api.grpc.params import require, respond_request
from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.rest import answer
from gateway.audio.wav import pcm16
from gateway.engine.backend import Tokens
from gateway.errors import InvalidRequest, MalformedBody, UploadTimeout
from gateway.session.admission import Upload
from gateway.session.keys import KeyHolder
from gateway.session.recorded import frame_limit
from gateway.session.request import RecordedRequest, prepare
from gateway.session.runtime import Runtime
from gateway.session.stats import SessionStats


async def respond(runtime: Runtime, context: grpc.aio.ServicerContext, key: KeyHolder | None) -> pb.RespondResponse:
    """Answer a recording as a whole. Raises GatewayError."""
    with runtime.admission.upload(key, 0) as upload:
        question = await _question(runtime, context, key, upload)
        _check_answer_fits(question, runtime)
        whole = await answer.whole(question, runtime)
    return await asyncio.to_thread(_response, whole)


async def respond_stream(
    runtime: Runtime, context: grpc.aio.ServicerContext, key: KeyHolder | None
) -> AsyncGenerator[pb.RespondChunk, None]:
    """A header once the prompt is in the models, the frames as they are made, a summary. Raises GatewayError."""
    with runtime.admission.upload(key, 0) as upload:
        question = await _question(runtime, context, key, upload)
        async with aclosing(_chunks(runtime, question)) as chunks:
            async for chunk in chunks:
                yield chunk


async def _question(
    runtime: Runtime, context: grpc.aio.ServicerContext, key: KeyHolder | None, upload: Upload
) -> RecordedRequest:
    """Read the one message of an admitted request.

    gRPC does not tell a message's length in advance: the largest one is reserved until it has arrived.
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
    asked = respond_request(require(message, "RespondRequest"))
    upload.shrink(message.ByteSize())
    del message
    return await prepare(asked, runtime, key, upload)


def _check_answer_fits(question: RecordedRequest, runtime: Runtime) -> None:
    """Raise InvalidRequest if the answer may be larger than a message: sending it would stall every session."""
    limit = runtime.settings.grpc_message_bytes
    frames = frame_limit(question.pcm, runtime.manifest, question.max_steps, runtime.settings.max_steps)
    if frames * runtime.manifest.frame_size * 2 > limit:
        raise InvalidRequest(
            f"an answer of {frames} frames may exceed {limit} bytes; use RespondStream, or fewer max_steps", "max_steps"
        )


async def _chunks(runtime: Runtime, question: RecordedRequest) -> AsyncGenerator[pb.RespondChunk, None]:
    count, texts = 0, []
    async with answer.answering(question, runtime) as under_way:
        async for frame in under_way.frames():
            if count == 0:
                yield pb.RespondChunk(header=_header(question, runtime))
            audio = pb.Audio(index=count, data=pcm16(frame.pcm), text=frame.text)
            if question.with_tokens:
                audio.text_token = frame.text_token
                audio.agent_codes.extend(frame.codes.tolist())
            count += 1
            texts.append(frame.text)
            yield pb.RespondChunk(audio=audio)
    yield pb.RespondChunk(
        summary=pb.RespondSummary(
            transcript="".join(texts).strip(),
            frames=count,
            timings=_timings(under_way.stats),
            user_codes=_flat(under_way.user_codes) if question.with_tokens else None,
        )
    )


def _header(question: RecordedRequest, runtime: Runtime) -> pb.RespondHeader:
    return pb.RespondHeader(
        voice=question.voice,
        seed=question.sampling.seed,
        format=pb.AUDIO_FORMAT_PCM_S16LE,
        sample_rate=runtime.manifest.sample_rate,
        frame_size=runtime.manifest.frame_size,
    )


def _response(whole: answer.Answer) -> pb.RespondResponse:
    with_tokens = whole.question.with_tokens
    return pb.RespondResponse(
        audio=whole.wav(),
        transcript="".join(frame.text for frame in whole.frames).strip(),
        frames=len(whole.frames),
        sample_rate=whole.sample_rate,
        voice=whole.question.voice,
        seed=whole.question.sampling.seed,
        timings=_timings(whole.stats),
        text_tokens=[frame.text_token for frame in whole.frames] if with_tokens else None,
        agent_codes=_flat([frame.codes for frame in whole.frames]) if with_tokens else None,
        user_codes=_flat(whole.user_codes) if with_tokens else None,
    )


def _timings(stats: SessionStats) -> pb.Timings:
    stages = {name: pb.StageTimings(**asdict(of)) for name, of in stats.stages().items()}
    return pb.Timings(
        setup_ms=stats.setup_seconds * 1000,
        time_to_first_audio_ms=stats.first_audio_seconds * 1000,
        rtf=stats.rtf,
        **stages,
    )


def _flat(codes: list[Tokens]) -> list[int]:
    return [int(code) for frame in codes for code in frame]
