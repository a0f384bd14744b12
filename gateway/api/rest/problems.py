"""Errors over HTTP: every one an `application/problem+json` (RFC 9457), mapped here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway import errors

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_MAPPED: dict[type[errors.GatewayError], tuple[HTTPStatus, str, str]] = {
    errors.InvalidRequest: (HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request", "The request is not valid"),
    errors.UnknownVoice: (HTTPStatus.UNPROCESSABLE_ENTITY, "unknown-voice", "There is no such voice"),
    errors.UnknownSystemPrompt: (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "unknown-system-prompt",
        "There is no such system prompt",
    ),
    errors.PromptTooLong: (HTTPStatus.UNPROCESSABLE_ENTITY, "prompt-too-long", "The text prompt is too long"),
    errors.AudioError: (HTTPStatus.UNPROCESSABLE_ENTITY, "unusable-audio", "The audio cannot be used"),
    errors.MalformedBody: (HTTPStatus.BAD_REQUEST, "malformed-body", "The body cannot be parsed"),
    errors.UnsupportedMediaType: (
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported-media-type",
        "This content type is not read here",
    ),
    errors.PayloadTooLarge: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload-too-large", "The body is too large"),
    errors.NotAllowed: (HTTPStatus.FORBIDDEN, "not-allowed", "The operator does not allow this"),
    errors.Unauthorized: (HTTPStatus.UNAUTHORIZED, "unauthorized", "An API key is needed"),
    errors.UnknownConversation: (HTTPStatus.NOT_FOUND, "unknown-conversation", "There is no such conversation"),
    errors.ConversationBusy: (HTTPStatus.CONFLICT, "conversation-busy", "A turn is still under way"),
    errors.TooManyForKey: (HTTPStatus.TOO_MANY_REQUESTS, "too-many-for-key", "This key's conversations are all taken"),
    errors.Draining: (HTTPStatus.SERVICE_UNAVAILABLE, "draining", "The server is shutting down"),
    errors.AtCapacity: (HTTPStatus.SERVICE_UNAVAILABLE, "at-capacity", "Every conversation is taken"),
    errors.EngineUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "engine-unavailable", "The models are not available"),
    errors.EngineError: (HTTPStatus.BAD_GATEWAY, "engine-error", "The models failed"),
    errors.GatewayError: (HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error", "Something went wrong here"),
}


class FieldProblem(BaseModel):
    """One part of the request and what is wrong with it."""

    field: str = Field(description="name of the field; empty for the request as a whole")
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(description="which kind of problem; stable, for programs")
    title: str = Field(description="the same for people")
    status: int = Field(description="the HTTP status again")
    detail: str = Field(description="what was the matter this time, in one line")
    errors: list[FieldProblem] | None = Field(None, description="the fields at fault, where there are some")


class InvalidFields(errors.InvalidRequest):
    """Several fields at fault at once."""

    def __init__(self, fields: list[FieldProblem]) -> None:
        super().__init__("; ".join(f"{item.field}: {item.message}" if item.field else item.message for item in fields))
        self.fields = fields


def response(error: errors.GatewayError, retry_after: int) -> Response:
    """The answer for an error of our own. `retry_after`: seconds told where the error itself does not say."""
    status, kind, title = next(_MAPPED[cls] for cls in type(error).__mro__ if cls in _MAPPED)
    fields: list[FieldProblem] | None = None
    if isinstance(error, InvalidFields):
        fields = error.fields
    elif isinstance(error, errors.InvalidRequest) and error.field is not None:
        fields = [FieldProblem(field=error.field, message=error.message)]
    headers = {}
    if isinstance(error, errors.TryLater):
        headers["Retry-After"] = str(error.retry_after)
    elif status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(retry_after)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _render(status, kind, title, error.message, fields, headers)


def kind(error: errors.GatewayError) -> str:
    """Which kind of problem it is, in the word every face uses for it."""
    return next(_MAPPED[cls][1] for cls in type(error).__mro__ if cls in _MAPPED)


def install(app: FastAPI, retry_after: int) -> None:
    """Make every error this app can answer with a problem."""

    async def gateway_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.GatewayError)  # noqa: S101 (the handler is registered for these only)
        answer = response(error, retry_after)
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, errors.TryLater):
            logger.error("%s %s: %s", request.method, request.url.path, error.message)
        return answer

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        status = HTTPStatus(error.status_code)
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return _render(status, f"http-{status.value}", status.phrase, detail, None, error.headers or {})

    async def unexpected(request: Request, error: Exception) -> Response:
        # The server logs the traceback; the caller gets none of it.
        detail = f"{request.method} {request.url.path} failed for a reason of our own"
        return _render(*_MAPPED[errors.GatewayError], detail, None, {})

    app.add_exception_handler(errors.GatewayError, gateway_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)


def _render(
    status: HTTPStatus,
    kind: str,
    title: str,
    detail: str,
    fields: list[FieldProblem] | None,
    headers: Mapping[str, str],
) -> Response:
    problem = Problem(type=f"urn:personaplex:{kind}", title=title, status=status.value, detail=detail, errors=fields)
    content = problem.model_dump_json(exclude_none=True)
    return Response(content, status.value, dict(headers), media_type=MEDIA_TYPE)
