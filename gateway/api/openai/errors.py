"""Errors as the OpenAI APIs report them: a type, a code, a message and the parameter at fault."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import JSONResponse

from gateway.errors import (
    AtCapacity,
    Draining,
    GatewayError,
    HandshakeTimeout,
    InvalidRequest,
    NotAllowed,
    PayloadTooLarge,
    PromptTooLong,
    TakenOver,
    TooManyForKey,
    Unauthorized,
    UnknownConversation,
)
from gateway.session.events import Ended, Reason

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
FORBIDDEN = "forbidden"
"""The type of a refusal that no retry changes. LiveKit fails at once; other types make it connect three times more."""

NORMAL_CLOSURE = 1000
POLICY_VIOLATION = 1008
"""WebSocket close codes, RFC 6455 section 7.4.1."""

# Type and code of each error of the gateway; subclasses come before their bases.
_CODES: tuple[tuple[type[GatewayError], str, str], ...] = (
    (Unauthorized, INVALID_REQUEST, "invalid_api_key"),
    (NotAllowed, FORBIDDEN, "not_allowed"),
    (AtCapacity, SERVER_ERROR, "server_overloaded"),
    (TooManyForKey, "rate_limit_error", "rate_limit_exceeded"),
    (Draining, SERVER_ERROR, "server_shutting_down"),
    (PromptTooLong, INVALID_REQUEST, "instructions_too_long"),
    (PayloadTooLarge, INVALID_REQUEST, "message_too_large"),
    (UnknownConversation, INVALID_REQUEST, "session_not_found"),
    (TakenOver, INVALID_REQUEST, "session_taken_over"),
    (HandshakeTimeout, INVALID_REQUEST, "session_not_started"),
    (InvalidRequest, INVALID_REQUEST, "invalid_value"),
    (GatewayError, SERVER_ERROR, "server_error"),
)

# Code and type of the error that reports the end of a session, and the close code. A client that is refused must not
# see 1000, which it takes for success. A session that expired was one.
_ENDS = {
    Reason.IDLE: ("session_expired", INVALID_REQUEST, NORMAL_CLOSURE),
    Reason.MAX_DURATION: ("session_expired", INVALID_REQUEST, NORMAL_CLOSURE),
    Reason.DRAINED: ("server_shutting_down", SERVER_ERROR, Reason.DRAINED.close_code),
    Reason.SLOW_CLIENT: ("slow_client", INVALID_REQUEST, Reason.SLOW_CLIENT.close_code),
    Reason.ENGINE: ("server_error", SERVER_ERROR, Reason.ENGINE.close_code),
    Reason.ERROR: ("server_error", SERVER_ERROR, Reason.ERROR.close_code),
}


class OpenAIError(Exception):
    """An error to be reported. `close_code`: of the WebSocket, if the error ends it."""

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        *,
        kind: str = INVALID_REQUEST,
        close_code: int = POLICY_VIOLATION,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind
        self.close_code = close_code


def translate(error: GatewayError) -> OpenAIError:
    """Translate an error of the gateway."""
    kind, code = next((kind, code) for known, kind, code in _CODES if isinstance(error, known))
    close_code = POLICY_VIOLATION if isinstance(error, InvalidRequest) else error.close_code
    param = "session.instructions" if isinstance(error, PromptTooLong) else None
    return OpenAIError(code, error.message, param, kind=kind, close_code=close_code)


def end_error(ended: Ended) -> OpenAIError | None:
    """Return the error that reports the end of a session, or None if the client has ended it."""
    if ended.error is not None:
        return translate(ended.error)
    if ended.reason not in _ENDS:
        return None
    code, kind, close_code = _ENDS[ended.reason]
    return OpenAIError(code, ended.message, kind=kind, close_code=close_code)


def response(error: OpenAIError, status: HTTPStatus, retry_after: int | None = None) -> JSONResponse:
    """Render an error as an HTTP response. `retry_after`: seconds after which to try again."""
    body = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else {}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return JSONResponse({"error": body}, status, headers)
