"""Leases: a conversation in a slot of its own, and the release of everything it holds, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

from opentelemetry.trace import Tracer

from gateway.engine.conversation import Conversation
from gateway.engine.prefix import PromptPrefix
from gateway.engine.sampling import SamplingParams
from gateway.engine.scheduler import FrameScheduler
from gateway.errors import GatewayError
from gateway.manifest import Manifest
from gateway.session.admission import Admission, Slot
from gateway.session.caller import Caller
from gateway.session.persona import Persona, check_prompt, prefix_of_codes, prefix_of_preset
from gateway.session.record import ConversationRecord
from gateway.session.recorded import split
from gateway.session.stats import SessionStats
from gateway.session.tokenizer import Tokenizer
from gateway.telemetry.metrics import Metrics
from gateway.voices.registry import VoiceRegistry


@dataclass(eq=False)
class ConversationLease:
    """A conversation that holds a slot.

    `reason`: why it ended, for the metrics; set where it differs from what the exit of `Leases.open` shows.
    """

    conversation: Conversation
    record: ConversationRecord
    stats: SessionStats
    reason: str = "completed"


class Leases:
    """Opens conversations, each in a slot of its own."""

    def __init__(
        self,
        manifest: Manifest,
        voices: VoiceRegistry,
        tokenizer: Tokenizer,
        scheduler: FrameScheduler,
        admission: Admission,
        metrics: Metrics,
        tracer: Tracer,
        frame_interval: int,
        release_wait: float,
    ) -> None:
        """
        frame_interval: see ConversationRecord.
        release_wait: seconds that a client waits for the release of its slot; the release itself goes on.
        """
        self._manifest = manifest
        self._voices = voices
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._admission = admission
        self._metrics = metrics
        self._tracer = tracer
        self._frame_interval = frame_interval
        self._release_wait = release_wait
        self._releasing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(
        self,
        persona: Persona,
        sampling: SamplingParams,
        caller: Caller,
        slot: Slot | None = None,
        identifier: str | None = None,
    ) -> AsyncIterator[ConversationLease]:
        """A conversation in a slot, not started yet. It is released and counted on the way out, whatever happens.

        It counts for `caller`. `slot`: reserved before; otherwise one is taken. `identifier`: of the
        conversation, if it has one already.

        Raises Draining, TooManyForKey, AtCapacity, UnknownVoice, PromptTooLong, AudioError, EngineUnavailable or
        EngineError.
        """
        text_tokens = self._tokenizer.encode_prompt(persona.text)
        check_prompt(text_tokens, self._manifest)
        prefix: PromptPrefix | None = None
        if isinstance(persona.voice, str):
            preset = self._voices.require(persona.voice).preset
            prefix = prefix_of_preset(preset, text_tokens, self._manifest)
        resources = AsyncExitStack()
        resources.callback((self._admission.acquire(caller) if slot is None else slot.claim()).release)
        record = ConversationRecord(
            identifier or str(uuid4()), caller, persona.voice_name, self._metrics, self._tracer, self._frame_interval
        )
        stats = self.stats(record, "setup")
        frames, reason = 0, "error"
        try:
            conversation = Conversation(self._scheduler, prefix, sampling)
            resources.push_async_callback(conversation.close)
            if not isinstance(persona.voice, str):
                codes = await conversation.encode_voice(split(persona.voice, self._manifest.frame_size))
                conversation.prefix = prefix_of_codes(codes, text_tokens, self._manifest)
            stats.watch(conversation)
            lease = ConversationLease(conversation, record, stats)
            try:
                yield lease
            finally:
                lease.stats.finish()
                frames = conversation.frames
            reason = lease.reason
        except (asyncio.CancelledError, GeneratorExit):
            reason = "disconnected"
            raise
        except GatewayError as error:
            reason = error.end_reason
            raise
        finally:
            record.end(
                reason,
                frames=frames,
                audio_seconds=frames / self._manifest.frame_rate,
                setup_seconds=stats.setup_seconds,
                first_audio_seconds=stats.first_audio_seconds,
            )
            await self._release(resources)

    def stats(self, record: ConversationRecord, stage: str) -> SessionStats:
        """New statistics of a conversation or turn, which begins with `stage`."""
        return SessionStats(self._metrics, record, 1 / self._manifest.frame_rate, stage)

    async def close(self) -> None:
        """Wait for the conversations that are being released."""
        if self._releasing:
            await asyncio.wait(self._releasing)

    async def _release(self, resources: AsyncExitStack) -> None:
        """End the sequences and then free the slot, in that order, even if the caller is cancelled meanwhile.

        A slot is not free before its sequences have ended. That may take longer than the client waits.
        """
        task = asyncio.create_task(resources.aclose())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        await asyncio.wait([task], timeout=self._release_wait)
