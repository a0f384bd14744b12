"""What the gateway counts and times, for Prometheus. All times are in seconds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from gateway.conversation.conversation import AgentFrame

STAGES = ("encode", "temporal", "depformer", "decode")
# Laid around the 80 ms a frame lasts.
_FRAME_BUCKETS = tuple(ms / 1000 for ms in (1, 2, 5, 10, 20, 40, 60, 70, 80, 90, 100, 120, 160, 320, 640))
_SETUP_BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)
_RTF_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 5.0)


class Metrics:
    """One registry per app, so that several can live in one process."""

    def __init__(self, slots: int) -> None:
        self.registry = registry = CollectorRegistry()
        self._frames = Counter("personaplex_frames", "Agent frames of 80 ms made", registry=registry)
        self._stages = Histogram(
            "personaplex_stage_seconds",
            "Time of one stage of a frame",
            ["stage"],
            buckets=_FRAME_BUCKETS,
            registry=registry,
        )
        self._frame_seconds = Histogram(
            "personaplex_frame_seconds",
            "From a user frame to the agent frame that answers it, waiting for shared frames included",
            buckets=_FRAME_BUCKETS,
            registry=registry,
        )
        self.rtf = Histogram(
            "personaplex_rtf",
            "Time spent on a conversation's frames over the audio made; below 1 is faster than real time",
            buckets=_RTF_BUCKETS,
            registry=registry,
        )
        self.setup_seconds = Histogram(
            "personaplex_setup_seconds",
            "From a slot being taken to the prompt being in the models",
            buckets=_SETUP_BUCKETS,
            registry=registry,
        )
        self.first_audio_seconds = Histogram(
            "personaplex_time_to_first_audio_seconds",
            "From a slot being taken to the first frame that is not the forced silence",
            buckets=_SETUP_BUCKETS,
            registry=registry,
        )
        self._latency = Histogram(
            "personaplex_input_to_output_seconds",
            "From a live caller's frame being complete at the gateway to the frame that answers it leaving",
            buckets=_FRAME_BUCKETS,
            registry=registry,
        )
        self._late = Counter(
            "personaplex_late_frames", "Live frames answered later than the 80 ms they last", registry=registry
        )
        self.dropped_frames = Counter(
            "personaplex_dropped_frames", "Frames of live callers dropped because we were late", registry=registry
        )
        self.gap_frames = Counter(
            "personaplex_gap_frames",
            "Frames of silence heard in place of a live caller's late audio",
            registry=registry,
        )
        self._queued = Histogram(
            "personaplex_input_queue_frames",
            "Frames of a live caller that wait when one is answered",
            buckets=(0, 1, 2, 3, 5, 10, 20),
            registry=registry,
        )
        self.prefill_columns = Counter(
            "personaplex_prefill_columns", "Columns of prompts fed to the temporal model", registry=registry
        )
        self._batch = Summary(
            "personaplex_shared_frame_conversations",
            "Conversations per shared frame; sum over count is the mean temporal batch",
            registry=registry,
        )
        self.active = Gauge("personaplex_conversations_active", "Conversations that hold a slot", registry=registry)
        self.ended = Counter("personaplex_ended", "Conversations ended, by reason", ["reason"], registry=registry)
        self.refused = Counter("personaplex_refused", "Conversations refused, by reason", ["reason"], registry=registry)
        Gauge("personaplex_slots", "Conversations that fit at once", registry=registry).set(slots)
        for stage in STAGES:
            self._stages.labels(stage)

    def frame(self, frame: AgentFrame) -> None:
        """Count one frame; frame 0 is the prompt's and is timed as setup."""
        self._frames.inc()
        if frame.index == 0:
            return
        self._frame_seconds.observe(frame.seconds)
        for stage in STAGES:
            self._stages.labels(stage).observe(getattr(frame.stages, stage))

    def live_frame(self, latency: float, *, late: bool, queued: int) -> None:
        """One live frame: seconds from input to output, whether that was too late, and what waits behind it."""
        if latency:
            self._latency.observe(latency)
        if late:
            self._late.inc()
        self._queued.observe(queued)

    def shared(self, members: int) -> None:
        """A shared frame of so many conversations."""
        self._batch.observe(members)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)
