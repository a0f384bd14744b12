"""The start and the end of a conversation, in the log, in a trace and in the metrics, with the same id."""

from __future__ import annotations

import logging
from dataclasses import asdict
from time import perf_counter, time_ns

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, format_trace_id, set_span_in_context

from gateway.engine.batch import AgentFrame
from gateway.session.caller import Caller
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.requests import request_id

logger = logging.getLogger(__name__)

_FAILURES = frozenset({"engine", "error"})
"""Reasons of an end that are the server's fault."""


class ConversationRecord:
    """One conversation, from the slot to the end.

    late_frames, dropped_frames: set by live sessions.
    """

    def __init__(
        self,
        identifier: str,
        caller: Caller,
        voice: str,
        metrics: Metrics,
        tracer: Tracer,
        frame_interval: int = 0,
    ) -> None:
        """`frame_interval`: live sessions pass one in so many frames to `frame`, if there is a trace; 0: none."""
        self.id = identifier
        self.late_frames = 0
        self.dropped_frames = 0
        self._caller = caller
        self._metrics = metrics
        self._tracer = tracer
        self._began = perf_counter()
        self._fields: dict[str, str | None] = {"id": identifier, "api": caller.api.value, "voice": voice}
        if (key := caller.key) is not None:
            self._fields["key"] = key.name
            metrics.key_conversations.labels(key.name).inc()
        attributes = {f"conversation.{name}": value for name, value in self._fields.items() if value is not None}
        self._fields["request_id"] = request_id()
        self._span = tracer.start_span("conversation", kind=SpanKind.SERVER, attributes=attributes)
        self.frame_interval = frame_interval if self._span.is_recording() else 0
        self.exemplar = {"conversation_id": identifier}
        """Labels that link a sample of a metric to this conversation."""
        if (context := self._span.get_span_context()).is_valid:
            self._fields["trace_id"] = self.exemplar["trace_id"] = format_trace_id(context.trace_id)
        logger.info("conversation started", extra=self._fields)

    def begin(self, stage: str) -> Span:
        """Begin a span of a stage; the caller ends it."""
        return self._tracer.start_span(stage, context=set_span_in_context(self._span))

    def frame(self, frame: AgentFrame, latency: float) -> None:
        """Trace a live frame.

        latency: seconds from the arrival of the user frame until now. The span has the seconds that it waited for its
        batch and spent in each model.
        """
        stages, now = asdict(frame.stages), time_ns()
        times = {"waited": max(latency - sum(stages.values()), 0.0), **stages}
        self._tracer.start_span(
            "frame",
            context=set_span_in_context(self._span),
            start_time=now - round(latency * 1e9),
            attributes={"frame.index": frame.index, **{f"frame.{name}": value for name, value in times.items()}},
        ).end(now)

    def late_frame(self, index: int, latency: float) -> None:
        """Count an agent frame that came too late; `latency` in seconds."""
        self.late_frames += 1
        self._metrics.of[self._caller.api].late_frames.inc(exemplar=self.exemplar)
        self._span.add_event("late frame", {"index": index, "latency": latency})

    def end(
        self, reason: str, *, frames: int, audio_seconds: float, setup_seconds: float, first_audio_seconds: float
    ) -> None:
        """Record the end. frames, audio_seconds: of the agent, in all turns; the other times are of the first one."""
        if (key := self._caller.key) is not None:
            self._metrics.key_audio_seconds.labels(key.name).inc(audio_seconds)
        self._metrics.ended.labels(self._caller.api.value, reason).inc(exemplar=self.exemplar)
        numbers = {
            "seconds": round(perf_counter() - self._began, 3),
            "frames": frames,
            "late": self.late_frames,
            "dropped": self.dropped_frames,
            "setup_seconds": round(setup_seconds, 3),
            "first_audio_seconds": round(first_audio_seconds, 3),
        }
        logger.info("conversation ended", extra={**self._fields, "reason": reason, **numbers})
        self._span.set_attributes({f"conversation.{name}": value for name, value in numbers.items()})
        self._span.set_attribute("conversation.reason", reason)
        if reason in _FAILURES:
            self._span.set_status(Status(StatusCode.ERROR, reason))
        self._span.end()
