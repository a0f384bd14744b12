"""Errors and ends of calls as gRPC statuses, mapped here and nowhere else; the .proto documents them for callers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from gateway import errors
from gateway.api.rest.problems import InvalidFields, kind
from gateway.api.sending import SlowClient
from gateway.session.events import Reason

logger = logging.getLogger(__name__)

Metadata = tuple[tuple[str, str], ...]
"""Trailing metadata."""

Code = grpc.StatusCode


class HandshakeTimeout(errors.GatewayError):
    """The first message did not come in time."""


_CODES: dict[type[errors.GatewayError], grpc.StatusCode] = {
    errors.InvalidRequest: Code.INVALID_ARGUMENT,
    errors.MalformedBody: Code.INVALID_ARGUMENT,
    errors.PayloadTooLarge: Code.INVALID_ARGUMENT,
    errors.Unauthorized: Code.UNAUTHENTICATED,
    errors.NotAllowed: Code.PERMISSION_DENIED,
    errors.UnknownConversation: Code.NOT_FOUND,
    errors.TooManyForKey: Code.RESOURCE_EXHAUSTED,
    errors.AtCapacity: Code.RESOURCE_EXHAUSTED,
    errors.Draining: Code.UNAVAILABLE,
    errors.EngineUnavailable: Code.UNAVAILABLE,
    errors.GatewayError: Code.INTERNAL,
    HandshakeTimeout: Code.DEADLINE_EXCEEDED,
    SlowClient: Code.RESOURCE_EXHAUSTED,
}
_PROBLEMS = {HandshakeTimeout: "handshake-timeout", SlowClient: "slow-client"}
_ENDS = {
    Reason.COMPLETED: Code.OK,
    Reason.DISCONNECTED: Code.CANCELLED,
    Reason.IDLE: Code.DEADLINE_EXCEEDED,
    Reason.MAX_DURATION: Code.DEADLINE_EXCEEDED,
    Reason.SLOW_CLIENT: Code.RESOURCE_EXHAUSTED,
    Reason.DRAINED: Code.UNAVAILABLE,
    Reason.ENGINE: Code.UNAVAILABLE,
    Reason.ERROR: Code.INTERNAL,
}
# Metadata beyond 8 KiB is refused by many a client; a character may take twelve bytes of it.
_DETAIL_CHARACTERS = 500


@asynccontextmanager
async def told(context: grpc.aio.ServicerContext, retry_after: int) -> AsyncIterator[None]:
    """Whatever fails inside becomes the call's status. `retry_after`: seconds told where the error does not say."""
    try:
        yield
    except errors.GatewayError as error:
        if code_of(error) is Code.INTERNAL or isinstance(error, errors.EngineUnavailable):
            logger.error("a gRPC call failed: %s", error.message)
        await context.abort(code_of(error), error.message[:_DETAIL_CHARACTERS], metadata_of(error, retry_after))
    except (grpc.aio.BaseError, grpc.aio.UsageError):
        # The status is on its way already, or there is nobody left to tell.
        raise
    except Exception:
        logger.exception("a gRPC call failed for a reason of our own")
        await context.abort(Code.INTERNAL, "failed for a reason of our own")


def code_of(error: errors.GatewayError) -> grpc.StatusCode:
    """The status of an error."""
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)


def metadata_of(error: errors.GatewayError, retry_after: int) -> Metadata:
    """What programs may want to know beside the status: which problem, which field, when to come back (seconds)."""
    told: list[tuple[str, str]] = [("personaplex-problem", _PROBLEMS.get(type(error)) or kind(error))]
    if isinstance(error, InvalidFields):
        told.append(("personaplex-field", ",".join(item.field for item in error.fields)))
    elif isinstance(error, errors.InvalidRequest) and error.field is not None:
        told.append(("personaplex-field", error.field))
    if isinstance(error, errors.TryLater):
        told.append(("retry-after", str(error.retry_after)))
    elif isinstance(error, errors.EngineUnavailable):
        told.append(("retry-after", str(retry_after)))
    return tuple(told)


def code_of_end(reason: Reason) -> grpc.StatusCode:
    """The status of a live call that ended so, unless it was the caller's error."""
    return _ENDS[reason]
