"""The id and the trace of the request that the current task serves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from uuid import uuid4

from opentelemetry import context, propagate

HEADER = "x-request-id"
"""Header of HTTP and metadata of gRPC, in requests and responses."""

_VALID = re.compile(r"[\x21-\x7e]{1,64}")
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def begin_request(headers: Mapping[str, str]) -> str:
    """Set the id and the trace of this task's request, from its headers; return the id.

    The id is the client's if it has up to 64 visible ASCII characters, else a new one. The trace is that of
    `traceparent` (https://www.w3.org/TR/trace-context/), if there is one.
    """
    given = headers.get(HEADER, "")
    identifier = given if _VALID.fullmatch(given) else str(uuid4())
    _request_id.set(identifier)
    # Not detached: a task serves one request.
    context.attach(propagate.extract(headers, context.Context()))
    return identifier


def request_id() -> str | None:
    """Return the id of this task's request; None outside of requests."""
    return _request_id.get()
