"""Log lines on stderr, as text or as one JSON object each, with the request's id and trace."""

from __future__ import annotations

import logging

from opentelemetry import trace
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from gateway.settings import LogFormat, LogLevel
from gateway.telemetry.requests import request_id

# uvicorn's `color_message` repeats the message.
_RESERVED = frozenset({*RESERVED_ATTRS, "taskName", "color_message"})
_PER_REQUEST = ("uvicorn.access", "httpx")
"""Loggers with a line per request: probes come every few seconds, and conversations have lines of their own."""


def configure(level: LogLevel, form: LogFormat) -> None:
    """Send the root logger's lines to stderr. Fields come from `extra` of the logging calls."""
    handler = logging.StreamHandler()
    handler.addFilter(add_request)
    handler.setFormatter(formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level == "info":
        for name in _PER_REQUEST:
            logging.getLogger(name).setLevel(logging.WARNING)


def formatter(form: LogFormat) -> logging.Formatter:
    """Return the formatter of a format. Times are in UTC in JSON and local in text."""
    if form == "text":
        return _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    names = {"levelname": "level", "name": "logger", "exc_info": "exception", "timestamp": "time"}
    columns = ["levelname", "name", "message"]
    return JsonFormatter(columns, timestamp=True, rename_fields=names, reserved_attrs=sorted(_RESERVED))


def add_request(record: logging.LogRecord) -> bool:
    """Filter of handlers: add `request_id`, and `trace_id` and `span_id` in a trace."""
    if (identifier := request_id()) is not None and not hasattr(record, "request_id"):
        record.request_id = identifier
    context = trace.get_current_span().get_span_context()
    if context.is_valid and not hasattr(record, "trace_id"):
        record.trace_id, record.span_id = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    return True


class _TextFormatter(logging.Formatter):
    """Append the fields to the message, as name=value."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (overrides)
        fields = [f" {name}={value}" for name, value in record.__dict__.items() if name not in _RESERVED]
        return super().formatMessage(record) + "".join(fields)
