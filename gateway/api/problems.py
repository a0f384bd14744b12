"""Report errors over HTTP as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway.errors import GatewayError, TryLater

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """A field of the request and what is wrong with it."""

    field: str = Field(description="name of the field; empty for the request as a whole")
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(description="stable identifier of the kind of problem, for programs")
    title: str = Field(description="the same for people")
    status: int = Field(description="the HTTP status again")
    detail: str = Field(description="what went wrong this time, in one line")
    errors: list[FieldProblem] | None = Field(None, description="the fields at fault, if there are some")


def response(error: GatewayError, retry_after: int) -> Response:
    """Render an error. `retry_after`: seconds stated for retriable errors that do not carry their own."""
    fields = [FieldProblem(field=item.field, message=item.message) for item in error.fields] or None
    headers = {}
    if error.retriable:
        headers["Retry-After"] = str(getattr(error, "retry_after", retry_after))
    if error.http_status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _render(error.http_status, error.code, error.title, error.message, fields, headers)


def install(app: FastAPI, retry_after: int) -> None:
    """Make the app report every error as a problem."""

    async def gateway_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, GatewayError)  # noqa: S101 (the handler is registered for these only)
        if error.http_status >= 500 and not isinstance(error, TryLater):
            logger.error("%s %s: %s", request.method, request.url.path, error.message)
        return response(error, retry_after)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        status = HTTPStatus(error.status_code)
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return _render(status, f"http-{status.value}", status.phrase, detail, None, error.headers or {})

    async def unexpected(request: Request, error: Exception) -> Response:
        # The server logs the traceback; the client gets none of it.
        return response(GatewayError(f"{request.method} {request.url.path} failed with an internal error"), retry_after)

    app.add_exception_handler(GatewayError, gateway_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)


def _render(
    status: HTTPStatus,
    code: str,
    title: str,
    detail: str,
    fields: list[FieldProblem] | None,
    headers: Mapping[str, str],
) -> Response:
    problem = Problem(type=f"urn:personaplex:{code}", title=title, status=status.value, detail=detail, errors=fields)
    content = problem.model_dump_json(exclude_none=True)
    return Response(content, status.value, dict(headers), media_type=MEDIA_TYPE)
