"""Timings of one conversation or one of its turns: for its client, and summed over all for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from opentelemetry.trace import Span

from gateway.engine.conversation import Conversation
from gateway.session.record import ConversationRecord
from gateway.telemetry.metrics import STAGES, Metrics

_NUMBERS = len(STAGES) + 1
"""Numbers per frame in `Conversation.stage_seconds`."""


@dataclass(frozen=True, slots=True)
class StageStats:
    """Milliseconds that one stage took over the frames of a conversation or turn."""

    median_ms: float
    p99_ms: float


class SessionStats:
    """Observes a conversation, or one of its later turns. The clock starts when it is made.

    setup_seconds: until the prompt was in the models. first_audio_seconds: until the first frame after the forced
    silence.
    """

    def __init__(self, metrics: Metrics, record: ConversationRecord, frame_seconds: float, stage: str) -> None:
        """`stage`: name of the first span: what is done before the prefill, or before the first audio of a turn."""
        self._metrics = metrics
        self._record = record
        self._span: Span | None = record.begin(stage)
        self._frame_seconds = frame_seconds
        self._began = perf_counter()
        self._conversation: Conversation | None = None
        self._first = 0
        self.setup_seconds = 0.0
        self.first_audio_seconds = 0.0

    def watch(self, conversation: Conversation) -> None:
        """Count the conversation's frames from here on."""
        self._conversation = conversation
        conversation.observer = self
        self._first = len(conversation.stage_seconds)

    def starting(self) -> None:
        """The prefill begins; see `Observer.starting`."""
        self._next_span("prefill")

    def started(self, fed: int, cached: int) -> None:
        """The prompt is in the models; see `Observer.started`."""
        metrics = self._metrics
        metrics.prefill_steps.inc(fed)
        metrics.cached_steps.inc(cached)
        self.setup_seconds = self.first_audio_seconds = perf_counter() - self._began
        metrics.setup_seconds.observe(self.setup_seconds, self._record.exemplar)
        self._next_span("first audio")

    def first_audio(self) -> None:
        """The first sampled frame is there; see `Observer.first_audio`."""
        self.first_audio_seconds = perf_counter() - self._began
        # The clock of a later turn did not start with the slot.
        if self.setup_seconds:
            self._metrics.first_audio_seconds.observe(self.first_audio_seconds, self._record.exemplar)
        self._end_span()

    def finish(self) -> None:
        """Record the real-time factor. Called once, at the end of the conversation or turn."""
        self._end_span()
        if len(self._frames()):
            self._metrics.rtf.observe(self.rtf, self._record.exemplar)

    @property
    def rtf(self) -> float:
        """Seconds spent on frames over seconds of audio generated. The prefill and frame 0 are not included."""
        frames = self._frames()
        return float(frames[:, -1].sum()) / (len(frames) * self._frame_seconds) if len(frames) else 0.0

    def stages(self) -> dict[str, StageStats]:
        """Median and 99th percentile of each stage over all frames but frame 0; zeros if there was no other."""
        frames = self._frames()
        times = (frames if len(frames) else np.zeros((1, _NUMBERS)))[:, :-1] * 1000
        median, p99 = np.percentile(times, [50, 99], axis=0)
        return {stage: StageStats(float(median[i]), float(p99[i])) for i, stage in enumerate(STAGES)}

    def _next_span(self, stage: str) -> None:
        self._end_span()
        self._span = self._record.begin(stage)

    def _end_span(self) -> None:
        if self._span is not None:
            self._span.end()
            self._span = None

    def _frames(self) -> np.ndarray:
        """[frames, 5] seconds."""
        numbers = self._conversation.stage_seconds[self._first :] if self._conversation else []
        return np.array(numbers, np.float64).reshape(-1, _NUMBERS)
