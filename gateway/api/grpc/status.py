"""Report errors as gRPC statuses; `gateway.errors` and the .proto document which."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc

from gateway.errors import GatewayError, TryLater
from gateway.telemetry.requests import HEADER, request_id

logger = logging.getLogger(__name__)

Metadata = tuple[tuple[str, str], ...]
"""Trailing metadata."""

Code = grpc.StatusCode

# Many clients refuse metadata beyond 8 KiB; a character takes up to twelve bytes of it.
_DETAIL_CHARACTERS = 500


@asynccontextmanager
async def error_status(context: grpc.aio.ServicerContext, retry_after: int) -> AsyncIterator[None]:
    """Turn an error raised inside into the status of the RPC.

    Args:
        context: of the RPC.
        retry_after: seconds stated for retriable errors that do not carry their own.
    """
    try:
        yield
    except GatewayError as error:
        if error.http_status >= 500 and not isinstance(error, TryLater):
            logger.error("a gRPC call failed: %s", error.message)
        status = Code[error.grpc_status]
        await context.abort(status, error.message[:_DETAIL_CHARACTERS], metadata_of(error, retry_after))
    except (grpc.aio.BaseError, grpc.aio.UsageError):
        # The status has been sent, or the client is gone.
        raise
    except Exception:
        logger.exception("a gRPC call failed with an internal error")
        await context.abort(Code.INTERNAL, "internal error", request_metadata())


def metadata_of(error: GatewayError, retry_after: int) -> Metadata:
    """Trailing metadata for programs: the error's code, the fields at fault, and when to retry in seconds."""
    metadata: list[tuple[str, str]] = [("personaplex-problem", error.code)]
    if error.fields:
        metadata.append(("personaplex-field", ",".join(item.field for item in error.fields)))
    if error.retriable:
        metadata.append(("retry-after", str(getattr(error, "retry_after", retry_after))))
    return (*metadata, *request_metadata())


async def accept(context: grpc.aio.ServicerContext) -> None:
    """Send the initial metadata, with the id of the request: the metadata of a refused RPC are empty."""
    # The next message reports a lost connection.
    with suppress(grpc.aio.BaseError, grpc.aio.UsageError):
        await context.send_initial_metadata(request_metadata())


def request_metadata() -> Metadata:
    """The id of the request; none for health checks."""
    identifier = request_id()
    return () if identifier is None else ((HEADER, identifier),)
