"""Parts of the OpenAPI document that FastAPI cannot derive: body and response media types, and problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, JSONResponse, Response

from gateway.api.access import key_holder
from gateway.api.problems import MEDIA_TYPE, Problem
from gateway.api.rest import docs
from gateway.api.rest.responses import CONVERSATION
from gateway.api.rest.schemas import RespondAnswer
from gateway.errors import Unauthorized
from gateway.session.params import RespondRequest
from gateway.session.persona import DEFAULT_SYSTEM_PROMPT, SYSTEM_PROMPTS
from gateway.session.runtime import Runtime

_RESPOND = "/v1/respond"
_REF = "#/components/schemas/{model}"
# Models that only the hand-written parts refer to.
_COMPONENTS: tuple[type[BaseModel], ...] = (Problem, RespondAnswer)

# Sixteen samples of 8-bit silence at 8 kHz: a small example.
_EXAMPLE_AUDIO = "UklGRjQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YRAAAACAgICAgICAgICAgICAgICA"


def _problem(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    return {"description": description, "content": content, **({"headers": headers} if headers else {})}


def _header(description: str, kind: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


_UNAVAILABLE = _problem(
    "Every slot is taken, too many bytes are being uploaded, or the models are not available",
    {"Retry-After": _header("seconds to wait", "integer")},
)

RESPOND_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer",
        "headers": {
            "X-PersonaPlex-Seed": _header("seed to repeat this answer with (WAV only)", "integer"),
            CONVERSATION: _header("with `keep`: the `conversation_id` of the next turn (WAV only)", "string"),
        },
        "content": {
            "audio/wav": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": {"$ref": _REF.format(model="RespondAnswer")}},
        },
    },
    400: _problem("The body cannot be parsed"),
    401: _problem("An API key is needed"),
    403: _problem("The operator does not allow `voice_audio`, or pages of that origin"),
    404: _problem("There is no conversation of that id"),
    408: _problem("The body did not arrive in time"),
    409: _problem("A turn of that conversation is still under way"),
    413: _problem("The body is too large"),
    415: _problem("The body is neither a form nor JSON"),
    422: _problem("A field or the audio cannot be used"),
    429: _problem("This key's conversations are all taken", {"Retry-After": _header("seconds to wait", "integer")}),
    502: _problem("The models failed"),
    503: _UNAVAILABLE,
}
DELETE_RESPONSES: dict[int | str, dict[str, Any]] = {
    401: _problem("An API key is needed"),
    403: _problem("The operator does not allow pages of that origin"),
    404: _problem("There is no such conversation"),
    409: _problem("A turn is still under way"),
}
KEY_RESPONSES: dict[int | str, dict[str, Any]] = {401: _problem("An API key is needed")}
READY_RESPONSES: dict[int | str, dict[str, Any]] = {503: _UNAVAILABLE}
METRICS_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


def respond_body(runtime: Runtime, *, with_voices: bool = False) -> dict[str, Any]:
    """The request body of `POST /v1/respond`, with the defaults and limits and, `with_voices`, the voices."""
    json = _request_schema(runtime, with_voices=with_voices)
    example: dict[str, Any] = {"audio": _EXAMPLE_AUDIO, "max_steps": 2, "greedy": True}
    if with_voices:
        example["voice"] = runtime.default_voice
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _as_form(json)},
            "application/json": {"schema": json, "example": example},
        },
    }


def install(app: FastAPI, runtime: Runtime) -> None:
    """Serve the document at /openapi.json and as a page at /docs. Without a key it names no voices."""

    def document(*, with_voices: bool = True) -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes, tags=None
            )
            _, models = models_json_schema([(model, "serialization") for model in _COMPONENTS], ref_template=_REF)
            schema.setdefault("components", {}).setdefault("schemas", {}).update(models["$defs"])
            app.openapi_schema = schema
        paths = app.openapi_schema["paths"]
        respond = {**paths[_RESPOND]["post"], "requestBody": respond_body(runtime, with_voices=with_voices)}
        return {**app.openapi_schema, "paths": {**paths, _RESPOND: {**paths[_RESPOND], "post": respond}}}

    def permitted(request: Request) -> dict[str, Any]:
        try:
            key_holder(runtime.keys, request.headers)
        except Unauthorized:
            return document(with_voices=False)
        return document()

    async def openapi(request: Request) -> Response:
        return JSONResponse(permitted(request))

    async def documentation(request: Request) -> Response:
        return HTMLResponse(docs.page(permitted(request)), headers=docs.HEADERS)

    app.openapi = document  # type: ignore[method-assign]
    app.add_route("/openapi.json", openapi, include_in_schema=False)
    app.add_route("/docs", documentation, include_in_schema=False)


def _request_schema(runtime: Runtime, *, with_voices: bool) -> dict[str, Any]:
    schema = RespondRequest.model_json_schema()
    fields = schema["properties"]
    for field in fields.values():
        field.pop("default", None)
        field.pop("title", None)
    for name, value in runtime.manifest.sampling:
        fields[name]["default"] = value
    if with_voices:
        fields["voice"]["default"] = runtime.default_voice
        _value(fields["voice"])["enum"] = list(runtime.voices.available())
    fields["system_prompt"]["default"] = DEFAULT_SYSTEM_PROMPT
    _value(fields["system_prompt"])["enum"] = list(SYSTEM_PROMPTS)
    _value(fields["max_steps"])["maximum"] = runtime.settings.max_steps
    if not runtime.settings.allow_voice_audio:
        fields["voice_audio"]["description"] += "; disabled on this server"
    return schema


def _as_form(json: dict[str, Any]) -> dict[str, Any]:
    """Return the same fields for a form: files are binary, and there is no null."""
    fields = {}
    for name, field in json["properties"].items():
        plain = {key: value for key, value in field.items() if key != "anyOf"} | _value(field)
        if plain.get("contentEncoding") == "base64":
            plain = {"type": "string", "format": "binary", "description": field["description"]}
        fields[name] = plain
    return {**json, "properties": fields}


def _value(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a nullable field without null."""
    value: dict[str, Any] = field["anyOf"][0] if "anyOf" in field else field
    return value
