"""Prometheus metrics of the gateway. All times are in seconds.

Metrics are objects of prometheus_client. Callers use their methods `inc` and `observe`.
"""

from __future__ import annotations

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, disable_created_metrics
from prometheus_client import generate_latest as exposition

STAGES = ("encode", "temporal", "depformer", "decode")
REFUSALS = ("capacity", "key", "draining", "upload_budget")
# Around the 80 ms of a frame.
_FRAME_BUCKETS = tuple(ms / 1000 for ms in (1, 2, 5, 10, 20, 40, 60, 70, 80, 90, 100, 120, 160, 320, 640))
_SETUP_BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)
_RTF_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 5.0)
_QUEUE_BUCKETS = (0, 1, 2, 3, 5, 10, 20)

# Without a second series per counter for its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Api(StrEnum):
    """The API of a conversation: label `api` of metrics, and in log lines."""

    REST = "rest"
    GRPC = "grpc"
    CONVERSE = "converse"
    """WebSocket `/v1/converse`."""
    CHAT = "chat"
    """WebSockets `/api/chat` and `/gated/api/chat`."""
    LIVE = "live"
    """OpenAI Live API."""
    REALTIME = "realtime"
    """OpenAI Realtime API."""
    TWILIO = "twilio"
    TELNYX = "telnyx"
    PLIVO = "plivo"
    VONAGE = "vonage"
    ASTERISK = "asterisk"


class ApiMetrics:
    """The series of one API."""

    def __init__(self, api: Api, metrics: Metrics) -> None:
        label = api.value
        self.input_to_output_seconds = metrics.input_to_output_seconds.labels(label)
        self.late_frames = metrics.late_frames.labels(label)
        self.dropped_frames = metrics.dropped_frames.labels(label)
        self.gap_frames = metrics.gap_frames.labels(label)
        self.connections_lost = metrics.connections_lost.labels(label)
        self.resumed = metrics.resumed.labels(label)
        # A series that begins at its first event has no rate until the second.
        self.refused = {reason: metrics.refused.labels(label, reason) for reason in REFUSALS}


class Metrics:
    """All metrics in one registry per app, so that several apps can live in one process."""

    def __init__(self, slots: int) -> None:
        registry = self.registry = CollectorRegistry()
        self.frames = Counter("personaplex_frames", "Agent frames of 80 ms generated", registry=registry)
        stages = Histogram(
            "personaplex_stage_seconds",
            "Time that a batch spent in one model",
            ["stage"],
            buckets=_FRAME_BUCKETS,
            registry=registry,
        )
        self.encode, self.temporal, self.depformer, self.decode = (stages.labels(stage) for stage in STAGES)
        self.frame_seconds = Histogram(
            "personaplex_frame_seconds",
            "From a user frame's submission to the agent frame that answers it, the wait for a batch included",
            buckets=_FRAME_BUCKETS,
            registry=registry,
        )
        self.input_to_output_seconds = Histogram(
            "personaplex_input_to_output_seconds",
            "From the end of a live user frame at the gateway (or when it was due, if sent ahead) to its answer",
            ["api"],
            buckets=_FRAME_BUCKETS,
            registry=registry,
        )
        self.rtf = Histogram(
            "personaplex_rtf",
            "Real-time factor of a conversation or turn: time spent on its frames over the audio generated",
            buckets=_RTF_BUCKETS,
            registry=registry,
        )
        self.setup_seconds = Histogram(
            "personaplex_setup_seconds",
            "From taking a slot to the end of the prefill",
            buckets=_SETUP_BUCKETS,
            registry=registry,
        )
        self.first_audio_seconds = Histogram(
            "personaplex_time_to_first_audio_seconds",
            "From taking a slot to the first frame after the forced silence; first turns only",
            buckets=_SETUP_BUCKETS,
            registry=registry,
        )
        self.late_frames = Counter(
            "personaplex_late_frames",
            "Live frames answered later than the 80 ms of a frame",
            ["api"],
            registry=registry,
        )
        self.dropped_frames = Counter(
            "personaplex_dropped_frames",
            "Live user frames dropped: too old for the server to take, or replaced by silence before they came",
            ["api"],
            registry=registry,
        )
        self.gap_frames = Counter(
            "personaplex_gap_frames", "Frames of silence used in place of late user audio", ["api"], registry=registry
        )
        self.connections_lost = Counter(
            "personaplex_connections_lost",
            "Connections lost whose live session waits to be resumed",
            ["api"],
            registry=registry,
        )
        self.resumed = Counter(
            "personaplex_resumed", "Live sessions resumed over another connection", ["api"], registry=registry
        )
        self.input_queue_frames = Histogram(
            "personaplex_input_queue_frames",
            "User frames of a live session that wait, sampled about once a second",
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self.prefill_steps = Counter(
            "personaplex_prefill_columns", "Steps of prompts computed by the temporal model", registry=registry
        )
        self.cached_steps = Counter(
            "personaplex_prefill_cached_columns",
            "Steps of prompts that the temporal model had in its prefix cache",
            registry=registry,
        )
        self.batch_size = Summary(
            "personaplex_batch_conversations",
            "Conversations per batch; sum over count is the mean batch size",
            registry=registry,
        )
        self.active = Gauge("personaplex_conversations_active", "Conversations that hold a slot", registry=registry)
        self.draining = Gauge(
            "personaplex_draining", "1 while no new conversations are taken, because of a drain", registry=registry
        )
        self.waiting = Gauge(
            "personaplex_conversations_waiting",
            "Conversations that hold a slot and whose prompt is not complete",
            registry=registry,
        )
        self.kv_cache = Gauge(
            "personaplex_kv_cache_utilization",
            "Filled positions of the temporal model divided by those of all slots, 0 to 1",
            registry=registry,
        )
        Gauge("personaplex_slots", "Conversations that fit at once", registry=registry).set(slots)
        self.ended = Counter(
            "personaplex_ended", "Conversations ended, by API and reason", ["api", "reason"], registry=registry
        )
        self.refused = Counter(
            "personaplex_refused", "Conversations refused, by API and reason", ["api", "reason"], registry=registry
        )
        self.key_conversations = Counter(
            "personaplex_key_conversations",
            "Conversations begun, by the name of the API key",
            ["key"],
            registry=registry,
        )
        self.key_audio_seconds = Counter(
            "personaplex_key_audio_seconds",
            "Seconds of agent audio generated, by the name of the API key",
            ["key"],
            registry=registry,
        )
        self.of = {api: ApiMetrics(api, self) for api in Api}

    def text(self) -> bytes:
        """The metrics in Prometheus' text format 0.0.4."""
        return exposition(self.registry)
