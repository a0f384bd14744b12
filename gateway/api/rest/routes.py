"""The REST face: a recording in, the agent's spoken answer out; and what voices and prompts there are."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from gateway.api.access import check_origin, key_holder
from gateway.api.rest import answer, body, openapi
from gateway.api.rest.disconnect import ClientGone, while_connected
from gateway.api.rest.negotiation import prefers_json
from gateway.api.rest.schemas import SystemPrompt, SystemPrompts, Voice, Voices
from gateway.errors import InvalidRequest
from gateway.session.persona import DEFAULT_SYSTEM_PROMPT, SYSTEM_PROMPTS
from gateway.session.request import prepare
from gateway.session.runtime import Runtime

# What proxies log when a caller hung up; nobody is there to read it.
CLIENT_GONE = 499


def router(runtime: Runtime) -> APIRouter:
    """The routes under /v1."""
    routes = APIRouter(prefix="/v1")

    @routes.post(
        "/respond",
        summary="Answer a recording",
        response_class=Response,
        responses=openapi.RESPOND_RESPONSES,
        openapi_extra={"requestBody": openapi.respond_body(runtime)},
    )
    async def respond(request: Request) -> Response:
        """Send what the user says; get what the agent says, as WAV (24 kHz mono PCM16) or, by `Accept`, as JSON.

        With `max_steps` equal to the recording's frames of 80 ms (rounded up), there is one output frame per input
        frame, the first being silence. Once the recording is over, the agent hears silence.
        """
        check_origin(request.headers, runtime.settings.allowed_origins)
        key = key_holder(runtime.keys, request.headers)
        json = prefers_json(request.headers.getlist("accept"))
        try:
            with runtime.admission.upload(key, runtime.turn_sessions.count(key)) as upload:
                asked = await body.read(request, upload, runtime.settings)
                stream = asked.stream
                if json and stream:
                    raise InvalidRequest(
                        "a JSON answer cannot be streamed: accept audio/wav, or leave stream out", "stream"
                    )
                question = await prepare(asked, runtime, key, upload)
                if stream:
                    pieces = answer.pieces(question, runtime)
                    # The prompt and everything that can be refused come before the status line.
                    first = await while_connected(request.receive, anext(pieces))
                    return answer.StreamedWav(first, pieces, question, runtime)
                whole = await while_connected(request.receive, answer.whole(question, runtime))
        except (ClientDisconnect, ClientGone):
            return Response(status_code=CLIENT_GONE)
        if json:
            head, tail = await asyncio.to_thread(whole.json_around_audio)
            size = len(head) + len(tail) + 4 * -(-whole.wav_bytes // 3)
            return answer.PiecewiseResponse(whole.json_pieces(head, tail), size, body.JSON, {}, runtime)
        return answer.PiecewiseResponse(whole.wav_pieces(), whole.wav_bytes, answer.WAV, whole.headers(), runtime)

    @routes.delete(
        "/conversations/{conversation_id}",
        status_code=204,
        summary="End a kept conversation",
        responses=openapi.DELETE_RESPONSES,
    )
    async def end(conversation_id: str, request: Request) -> None:
        """Give its slot back."""
        check_origin(request.headers, runtime.settings.allowed_origins)
        await runtime.turn_sessions.end(conversation_id, key_holder(runtime.keys, request.headers))

    @routes.get("/voices", summary="Preset voices", responses=openapi.KEY_RESPONSES)
    async def voices(request: Request) -> Voices:
        key_holder(runtime.keys, request.headers)
        manifest = runtime.manifest
        return Voices(
            default=runtime.default_voice,
            voices=[
                Voice(name=voice.name, seconds=voice.frames / manifest.frame_rate, origin=voice.origin)
                for voice in runtime.voices.available().values()
            ],
            voice_audio=runtime.settings.allow_voice_audio,
        )

    @routes.get("/system-prompts", summary="Preset prompts", responses=openapi.KEY_RESPONSES)
    async def system_prompts(request: Request) -> SystemPrompts:
        key_holder(runtime.keys, request.headers)
        return SystemPrompts(
            default=DEFAULT_SYSTEM_PROMPT,
            system_prompts=[SystemPrompt(name=name, text=text) for name, text in SYSTEM_PROMPTS.items()],
        )

    return routes
