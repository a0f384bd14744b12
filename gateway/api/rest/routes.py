"""The REST API: respond to recordings, end conversations, list voices and prompts."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from gateway.api.access import check_origin, key_holder
from gateway.api.disconnect import ClientGone, while_connected
from gateway.api.rest import body, openapi, responses
from gateway.api.rest.negotiation import prefers_json
from gateway.api.rest.schemas import SystemPrompt, SystemPrompts, Voice, Voices
from gateway.errors import InvalidRequest
from gateway.session.caller import Caller
from gateway.session.persona import DEFAULT_SYSTEM_PROMPT, SYSTEM_PROMPTS
from gateway.session.recorded_run import run_recorded
from gateway.session.request import prepare
from gateway.session.runtime import Runtime
from gateway.telemetry.metrics import Api

# Status of nginx for a client that disconnected. It is only logged.
CLIENT_GONE = 499


def router(runtime: Runtime) -> APIRouter:
    """Return the routes under /v1."""
    routes = APIRouter(prefix="/v1")

    @routes.post(
        "/respond",
        summary="Respond to a recording",
        response_class=Response,
        responses=openapi.RESPOND_RESPONSES,
        openapi_extra={"requestBody": openapi.respond_body(runtime)},
    )
    async def respond(request: Request) -> Response:
        """Send a recording of the user; get the agent's audio as WAV (24 kHz mono PCM16) or, by `Accept`, as JSON.

        With `max_steps` equal to the recording's frames of 80 ms (rounded up), there is one output frame per input
        frame; the first is silence. After the end of the recording the input is silence.
        """
        check_origin(request.headers, runtime.settings.allowed_origins)
        caller = Caller(Api.REST, key_holder(runtime.keys, request.headers))
        json = prefers_json(request.headers.getlist("accept"))
        try:
            with runtime.admission.upload(caller, runtime.turn_sessions.count(caller.key)) as upload:
                params = await body.read(request, upload, runtime.settings)
                stream = params.stream
                if json and stream:
                    raise InvalidRequest(
                        "a JSON response cannot be streamed: accept audio/wav, or leave stream out", "stream"
                    )
                recorded = await prepare(params, runtime, caller, upload)
                if stream:
                    pieces = responses.wav_stream(recorded, runtime)
                    # Rejections and failures of the prefill get a status of their own: the status line is sent later.
                    first = await while_connected(request.receive, anext(pieces))
                    return responses.StreamedWav(first, pieces, recorded, runtime)
                result = await while_connected(request.receive, run_recorded(recorded, runtime))
        except (ClientDisconnect, ClientGone):
            return Response(status_code=CLIENT_GONE)
        if json:
            head, tail = await asyncio.to_thread(responses.json_around_audio, result)
            size = len(head) + len(tail) + 4 * -(-result.wav_bytes // 3)
            pieces_of_json = responses.json_pieces(result, head, tail)
            return responses.PiecewiseResponse(pieces_of_json, size, body.JSON, {}, runtime)
        headers = responses.wav_headers(result)
        return responses.PiecewiseResponse(result.wav_pieces(), result.wav_bytes, responses.WAV, headers, runtime)

    @routes.delete(
        "/conversations/{conversation_id}",
        status_code=204,
        summary="End a conversation",
        responses=openapi.DELETE_RESPONSES,
    )
    async def end(conversation_id: str, request: Request) -> None:
        """Release its slot."""
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
