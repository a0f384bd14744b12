"""What the gateway counts and times, for Prometheus. All times are in seconds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, disable_created_metrics, generate_latest

from gateway.engine.conversation import AgentFrame
from gateway.session.events import Reason
from gateway.telemetry.histogram import Histogram, HistogramFamily

STAGES = ("encode", "temporal", "depformer", "decode")
REFUSALS = ("capacity", "key", "draining", "upload_budget")
# Laid around the 80 ms a frame lasts.
_FRAME_BUCKETS = tuple(ms / 1000 for ms in (1, 2, 5, 10, 20, 40, 60, 70, 80, 90, 100, 120, 160, 320, 640))
_SETUP_BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)
_RTF_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 5.0)
_QUEUE_BUCKETS = (0, 1, 2, 3, 5, 10, 20)

# When a counter was made is a second series for each, and nobody asks.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """One registry per app, so that several can live in one process."""

    def __init__(self, slots: int) -> None:
        self.registry = CollectorRegistry()
        self._frames = self._counter("frames", "Agent frames of 80 ms made")
        stages = HistogramFamily(
            "personaplex_stage_seconds",
            "Time of one stage of a frame",
            _FRAME_BUCKETS,
            self.registry,
            "stage",
            STAGES,
        )
        self._encode, self._temporal, self._depformer, self._decode = (stages.of(stage) for stage in STAGES)
        self._frame_seconds = self._histogram(
            "frame_seconds",
            "From a user frame to the agent frame that answers it, waiting for shared frames included",
            _FRAME_BUCKETS,
        )
        self.input_to_output_seconds = self._histogram(
            "input_to_output_seconds",
            "From a live caller's frame being complete at the gateway, or due if sent ahead, to its answer leaving",
            _FRAME_BUCKETS,
        )
        self.rtf = self._histogram(
            "rtf",
            "Time spent on a conversation's or a turn's frames over the audio made; below 1 is faster than real time",
            _RTF_BUCKETS,
        )
        self.setup_seconds = self._histogram(
            "setup_seconds", "From a slot being taken to the prompt being in the models", _SETUP_BUCKETS
        )
        self.first_audio_seconds = self._histogram(
            "time_to_first_audio_seconds",
            "From a slot being taken to the first frame that is not the forced silence; not of later turns",
            _SETUP_BUCKETS,
        )
        self.late_frames = self._counter("late_frames", "Live frames answered later than the 80 ms they last")
        self.dropped_frames = self._counter(
            "dropped_frames", "Live frames never heard: the server did not keep up, or silence was heard in their place"
        )
        self.gap_frames = self._counter("gap_frames", "Frames of silence heard in place of a live caller's late audio")
        self.input_queue_frames = self._histogram(
            "input_queue_frames", "User frames of a live session that wait, sampled about once a second", _QUEUE_BUCKETS
        )
        self._fed_columns = self._counter("prefill_columns", "Columns of prompts fed to the temporal model")
        self._cached_columns = self._counter(
            "prefill_cached_columns", "Columns of prompts that the temporal model had kept from an earlier conversation"
        )
        self._batch = Summary(
            "personaplex_shared_frame_conversations",
            "Conversations per shared frame; sum over count is the mean temporal batch",
            registry=self.registry,
        )
        self.active = Gauge(
            "personaplex_conversations_active", "Conversations that hold a slot", registry=self.registry
        )
        Gauge("personaplex_slots", "Conversations that fit at once", registry=self.registry).set(slots)
        self.ended = Counter("personaplex_ended", "Conversations ended, by reason", ["reason"], registry=self.registry)
        self.refused = Counter(
            "personaplex_refused", "Conversations refused, by reason", ["reason"], registry=self.registry
        )
        # A series that begins at its first event has no rate until the second.
        for reason in Reason:
            self.ended.labels(reason.value)
        for refusal in REFUSALS:
            self.refused.labels(refusal)

    def frame(self, frame: AgentFrame) -> None:
        """Count one frame; frame 0 is the prompt's and is timed as setup."""
        self._frames.inc()
        if frame.index == 0:
            return
        stages = frame.stages
        self._frame_seconds.observe(frame.seconds)
        self._encode.observe(stages.encode)
        self._temporal.observe(stages.temporal)
        self._depformer.observe(stages.depformer)
        self._decode.observe(stages.decode)

    def prefilled(self, fed: int, cached: int) -> None:
        """A conversation has begun: columns of its prompt that were computed, and that did not have to be."""
        self._fed_columns.inc(fed)
        self._cached_columns.inc(cached)

    def shared(self, members: int) -> None:
        """A shared frame of so many conversations."""
        self._batch.observe(members)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)

    def _counter(self, name: str, documentation: str) -> Counter:
        return Counter(f"personaplex_{name}", documentation, registry=self.registry)

    def _histogram(self, name: str, documentation: str, bounds: tuple[float, ...]) -> Histogram:
        return HistogramFamily(f"personaplex_{name}", documentation, bounds, self.registry).of()
