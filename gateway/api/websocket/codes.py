"""What went wrong or came to an end, as WebSocket close codes (RFC 6455 section 7.4.1); mapped here, nowhere else."""

from __future__ import annotations

from gateway import errors
from gateway.api.rest import problems
from gateway.session.events import Reason

COMPLETED = 1000
GOING_AWAY = 1001
WRONG_KIND = 1003
MALFORMED = 1007
NOT_ALLOWED = 1008
TOO_BIG = 1009
FAILED = 1011
RESTARTING = 1012
TRY_LATER = 1013

_OF_ERRORS: dict[type[errors.GatewayError], int] = {
    errors.InvalidRequest: MALFORMED,
    errors.MalformedBody: MALFORMED,
    errors.UnsupportedMediaType: WRONG_KIND,
    errors.PayloadTooLarge: TOO_BIG,
    errors.NotAllowed: NOT_ALLOWED,
    errors.Unauthorized: NOT_ALLOWED,
    errors.Draining: RESTARTING,
    errors.TryLater: TRY_LATER,
    errors.GatewayError: FAILED,
}

_OF_REASONS = {
    Reason.COMPLETED: COMPLETED,
    Reason.DISCONNECTED: GOING_AWAY,
    Reason.IDLE: GOING_AWAY,
    Reason.MAX_DURATION: GOING_AWAY,
    Reason.SLOW_CLIENT: NOT_ALLOWED,
    Reason.DRAINED: RESTARTING,
    Reason.ENGINE: FAILED,
    Reason.ERROR: FAILED,
}


class HandshakeTimeout(errors.NotAllowed):
    """The caller did not say in time what they want."""


def of_error(error: errors.GatewayError) -> int:
    """The close code for a refusal."""
    return next(_OF_ERRORS[cls] for cls in type(error).__mro__ if cls in _OF_ERRORS)


def of_reason(reason: Reason) -> int:
    """The close code for the end of a call."""
    return _OF_REASONS[reason]


def kind_of(error: errors.GatewayError) -> str:
    """The word for an error on the wire: those of the HTTP problems, and one of our own."""
    return "handshake-timeout" if isinstance(error, HandshakeTimeout) else problems.kind(error)
