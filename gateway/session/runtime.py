"""What a running gateway holds: the scheduler, slots, keys, voices and sessions."""

from __future__ import annotations

from itertools import product

from opentelemetry.trace import NoOpTracer, Tracer

from gateway.audio import loudness
from gateway.engine.backend import Backend
from gateway.engine.scheduler import FrameScheduler
from gateway.manifest import Manifest
from gateway.session.admission import Admission
from gateway.session.events import Reason
from gateway.session.keys import Keys
from gateway.session.leases import Leases
from gateway.session.live import Parts
from gateway.session.live_sessions import LiveSessions
from gateway.session.readiness import Readiness
from gateway.session.sessions import Sessions
from gateway.session.tokenizer import Tokenizer
from gateway.session.turns import TurnSessions
from gateway.session.warmup import Warmup
from gateway.settings import Settings
from gateway.telemetry.metrics import Api, Metrics
from gateway.voices.registry import VoiceRegistry


class Runtime:
    """Everything that the APIs share, made from settings, a built repository's manifest and a backend."""

    def __init__(
        self, settings: Settings, manifest: Manifest, backend: Backend, metrics: Metrics, tracer: Tracer | None = None
    ) -> None:
        """`tracer`: None for no traces.

        Raises KeysFileError, and what `warmup.prefix_of` raises for `settings.warm`.
        """
        if settings.allow_voice_audio:
            loudness.load()
        self.settings = settings
        self.manifest = manifest
        self.backend = backend
        self.metrics = metrics
        self.voices = VoiceRegistry(manifest)
        self.tokenizer = Tokenizer(manifest.tokenizer_path, manifest.text_card, manifest.text_padding_id)
        self.scheduler = FrameScheduler(
            backend,
            manifest.slots,
            manifest.delays,
            self.tokenizer.pieces,
            metrics,
            settings.batch_interval,
            manifest.text_padding_id,
        )
        metrics.draining.set_function(lambda: self.sessions.draining)
        metrics.kv_cache.set_function(lambda: self.scheduler.filled(manifest.context))
        self.admission = Admission(manifest.slots, settings.retry_after, metrics, settings.upload_budget_bytes)
        self.sessions = Sessions(self.admission, settings)
        self.keys = Keys(
            settings.api_keys,
            settings.api_keys_file,
            settings.key_conversations,
            settings.key_per_minute,
            settings.retry_after,
            metrics,
        )
        self.leases = Leases(
            manifest,
            self.voices,
            self.tokenizer,
            self.scheduler,
            self.admission,
            metrics,
            tracer or NoOpTracer(),
            settings.trace_frame_interval,
            settings.release_wait,
        )
        self.turn_sessions = TurnSessions(
            self.leases, self.sessions, settings.turn_session_idle_seconds, settings.max_call_seconds
        )
        self.readiness = Readiness(backend)
        self.live_sessions = LiveSessions(
            self.leases, settings, Parts(manifest, metrics, self.readiness, self.sessions)
        )
        self.sessions.end_waiting = self._end_waiting
        self.warmup = Warmup(
            settings.warm,
            manifest,
            self.voices,
            self.tokenizer,
            self.scheduler,
            self.admission,
            self.readiness,
            metrics,
        )

        # A series that begins at its first event has no rate until the second.
        for api, reason in product(Api, Reason):
            metrics.ended.labels(api.value, reason.value)

    @property
    def default_voice(self) -> str:
        """The voice of a request that names none: the operator's choice, or the first one if that does not exist."""
        name, voices = self.settings.default_voice, self.voices.available()
        return name if name in voices else next(iter(voices), name)

    async def _end_waiting(self) -> None:
        self.live_sessions.end_waiting()
        await self.turn_sessions.end_waiting()

    async def close(self) -> None:
        """End all sessions, wait for conversations that are being released, then stop the scheduler."""
        await self.live_sessions.close()
        await self.turn_sessions.close()
        await self.leases.close()
        await self.scheduler.close()
